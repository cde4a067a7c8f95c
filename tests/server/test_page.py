"""The page, used as a person would use it, in a real browser."""

from typing import Any

import pytest

from genpipe.server.app import create_app
from genpipe.server.engine import Engine
from tests.server.conftest import SECONDS, Open, drawn, listening, until


def test_a_prompt_becomes_four_pictures_with_the_seed_shown(opened: Open) -> None:
    page = opened()
    assert page.title() == "genpipe" and page.get_by_role("status").inner_text() == ""
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_role("button", name="Draw", exact=True).click()
    figures = drawn(page, 4)
    assert page.get_by_role("status").inner_text() == "Done."
    seed = page.locator("#seed").input_value()
    seeds = [figure.locator("figcaption").inner_text().split("\n")[0] for figure in figures.all()]
    assert sorted(seeds) == sorted(f"Seed {int(seed) + k}" for k in range(4))
    assert page.locator("#pictures img").first.evaluate("image => image.naturalWidth") == 32


def test_examples_show_what_to_write(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name="an owl at night").click()
    drawn(page, 4)
    assert page.get_by_label("A picture of").input_value() == "an owl at night"
    until(page, "document.getElementById('words').textContent.startsWith('Length: ')")
    assert page.locator("#examples").is_hidden()


def test_vary_and_enlarge(opened: Open) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_label("How many").select_option("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    figures = drawn(page, 1)
    first = figures.locator("img").get_attribute("src")
    figures.get_by_role("button", name="Vary").click()
    figures = drawn(page, 4)
    assert first not in [image.get_attribute("src") for image in page.locator("#pictures img").all()]
    figures.first.get_by_role("button", name="Enlarge").click()
    drawn(page, 1)
    assert page.locator("#pictures img").evaluate("image => image.naturalWidth") == 64


def test_what_is_drawn_is_stopped_by_a_button_and_by_a_key(opened: Open, engine: Engine) -> None:
    page = opened()
    for stop in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_label("A picture of").fill("a")
        page.get_by_label("How many").select_option("8")
        page.locator("#form summary").click()
        page.get_by_label("Steps").fill("150")
        page.locator("#form summary").click()
        page.get_by_label("A picture of").press("Control+Enter")
        until(page, "document.querySelector('#pictures img.preview')")
        stop()
        until(page, "document.getElementById('status').textContent === 'Stopped.'")
        assert engine.idle and page.get_by_role("button", name="Stop").is_disabled()


def test_a_seed_is_kept_or_rolled_and_settings_reach_the_request(opened: Open) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("it's a cat")
    page.get_by_label("Keep out of it").fill("fog")
    page.get_by_label("How many").select_option("1")
    page.get_by_label("Shape").select_option("1.7778")
    page.locator("#form summary").click()
    page.get_by_label("Keep the seed").check()
    page.get_by_label("Seed", exact=True).fill("18446744073709551615")
    page.get_by_label("Steps").fill("3")
    page.get_by_label("Sampler").select_option("euler_a")
    page.get_by_role("button", name="Draw", exact=True).click()
    figure = drawn(page, 1)
    assert page.locator("#seed").input_value() == "18446744073709551615"
    figure.get_by_text("Copy as…").click()
    figure.get_by_role("button", name="Command").click()
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("genpipe generate --prompt 'it'\\''s a cat' -n 1")
    for part in (
        "--seed 18446744073709551615",
        "--steps 3",
        "--sampler euler_a",
        "--negative-prompt fog",
        "--size 40x24",
    ):
        assert part in command, command
    figure.get_by_role("button", name="Python").click()
    page.wait_for_timeout(100)
    assert "seed=18446744073709551615" in page.evaluate("navigator.clipboard.readText()")


def test_history_survives_a_reload_and_gives_settings_back(opened: Open) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a pirate ship")
    page.get_by_label("How many").select_option("2")
    page.get_by_role("button", name="Draw", exact=True).click()
    drawn(page, 2)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    again = page.get_by_role("button", name="Use these settings: a pirate ship")
    again.click()
    drawn(page, 2)
    assert page.get_by_label("A picture of").input_value() == "a pirate ship"
    page.get_by_role("button", name="Forget all of them").click()
    until(page, "document.querySelectorAll('#history figure').length === 0")


def test_a_reload_in_the_middle_loses_nothing(opened: Open) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a")
    page.locator("#form summary").click()
    page.get_by_label("Steps").fill("120")
    page.get_by_role("button", name="Draw", exact=True).click()
    until(page, "document.querySelector('#pictures img.preview')")
    page.reload()
    drawn(page, 4)


def test_mistakes_and_a_server_that_is_gone_are_said(browser: Any, engine: Engine) -> None:
    context = browser.new_context(locale="en-GB")
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    with listening(create_app(engine)) as url:
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.get_by_label("A picture of").fill("a <lora:x>")
        page.get_by_role("button", name="Draw", exact=True).click()
        until(page, "document.getElementById('error').textContent.includes('names a LoRA')")
    page.get_by_role("button", name="Draw", exact=True).click()
    until(page, "document.getElementById('error').textContent.includes('does not answer')")
    assert page.evaluate("document.getElementById('error').getBoundingClientRect().bottom <= innerHeight")
    context.close()


def test_a_key_is_asked_for(browser: Any, engine: Engine) -> None:
    context = browser.new_context(locale="en-GB")
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    with listening(create_app(engine, key="secret")) as url:
        page.goto(url)
        page.locator("#key").fill("secret")
        page.get_by_role("button", name="Go on").click()
        page.wait_for_selector("body[data-ready]")
        page.get_by_label("A picture of").fill("a")
        page.get_by_label("How many").select_option("1")
        page.get_by_role("button", name="Draw", exact=True).click()
        drawn(page, 1)
        context.close()


def test_two_tabs_draw_at_once(opened: Open) -> None:
    first = opened()
    second = opened(context=first.context)
    for page, prompt in ((first, "a cat"), (second, "a dog")):
        page.get_by_label("A picture of").fill(prompt)
        page.get_by_role("button", name="Draw", exact=True).click()
    for page in (first, second):
        drawn(page, 4)
    assert {figure.get_attribute("alt").split(",")[0] for figure in first.locator("#pictures img").all()} == {
        "Picture: a cat"
    }


def test_it_is_in_russian_where_the_browser_is(opened: Open) -> None:
    page = opened("ru-RU")
    assert page.evaluate("document.documentElement.lang") == "ru"
    page.get_by_label("На картине").fill("красный кот")
    page.get_by_label("Сколько", exact=True).select_option("1")
    page.get_by_role("button", name="Нарисовать").click()
    figure = drawn(page, 1)
    assert page.get_by_role("status").inner_text() == "Готово."
    figure.get_by_role("button", name="Варианты").wait_for()
    english = page.evaluate(
        "[...document.querySelectorAll('[data-text]')].filter((e) => /[a-z]{3}/i.test(e.textContent)).length"
    )
    assert english == 2  # "API" and "Shift"


@pytest.mark.parametrize(
    ("locale", "line"),
    [
        ("en-GB", "“Keep out of it” has no effect at a “How closely to follow the words” of 1: raise it above 1, or leave “Keep out of it” out"),
        ("ru-RU", "Настройка «Чего не должно быть» ничего не меняет, пока «Насколько следовать словам» равно 1: поставьте больше 1."),
    ],
)  # fmt: skip
def test_what_there_is_to_know_of_pictures_is_said_once_in_the_words_of_the_page(
    opened: Open, locale: str, line: str
) -> None:
    page = opened(locale)
    page.locator("#prompt").fill("a cat")
    page.locator("#negative").fill("fog")
    page.locator("#form summary").click()
    page.locator("#scale").fill("1")
    page.locator("#draw").click()
    drawn(page, 4)
    assert page.locator("#notices p").all_inner_texts() == [line]
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.locator("#history button").first.click()
    drawn(page, 4)
    assert page.locator("#notices p").all_inner_texts() == [line]


def test_on_a_narrow_screen_what_is_asked_for_comes_into_sight(opened: Open) -> None:
    page = opened()
    page.set_viewport_size({"width": 390, "height": 700})
    page.get_by_label("A picture of").fill("a cat")
    page.get_by_label("How many").select_option("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    figure = drawn(page, 1)
    in_sight = "(element) => { const { top, bottom } = element.getBoundingClientRect(); return top < innerHeight && bottom > 0; }"
    assert page.locator("#shown").evaluate(in_sight)
    figure.get_by_role("button", name="Begin from it").click()
    page.locator("#given").wait_for()
    until(page, f"({in_sight})(document.getElementById('given-image'))")
    page.locator("#pictures").get_by_role("button", name="Vary").press("Enter")  # a button that goes away
    drawn(page, 4)
    assert page.evaluate("document.activeElement.id") == "shown"


def test_everything_is_reached_and_seen_with_keys_alone(opened: Open) -> None:
    page = opened()
    page.locator("body").click(position={"x": 1, "y": 1})
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert seen == ["prompt", "negative", "style", "shape", "count", "file", "SUMMARY", "draw"]
    page.focus("#draw")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
