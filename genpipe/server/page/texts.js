// What the page says, in the browser's language.

const RUSSIAN = {
  lead: "Напишите, что хотите увидеть, и это будет нарисовано.",
  ask: "Что нарисовать?",
  prompt: "На картине",
  negative: "Чего не должно быть",
  style: "Стиль",
  none: "Без стиля",
  shape: "Форма",
  square: "Квадрат",
  landscape: "Широкая, 4:3",
  cinema: "Очень широкая, 16:9",
  portrait: "Высокая, 3:4",
  phone: "Очень высокая, 9:16",
  like: "Как у картинки",
  size: "{width} на {height}",
  count: "Сколько",
  start: "Начать с картинки",
  drop: "Перетащите картинку сюда или выберите файл.",
  choose: "Выбрать картинку",
  strength: "Насколько изменить",
  little: "немного",
  everything: "всё",
  paint: "Изменить только часть",
  brush: "Кисть поверх картинки",
  brushing: "Закрасьте то, что должно измениться. С клавиатуры: стрелки двигают кисть, пробел красит, Shift со стрелкой проводит линию.",
  width: "Толщина кисти",
  undo: "Отменить мазок",
  clear: "Стереть всё",
  read: "Взять её настройки",
  remove: "Убрать",
  more: "Ещё",
  seed: "Зерно",
  keep: "Не менять зерно",
  steps: "Шаги",
  scale: "Насколько следовать словам",
  sampler: "Сэмплер",
  usual: "Как обычно для модели",
  model: "Модель",
  kept: "И ещё из её настроек: {settings}",
  leave: "Без них",
  unread: "Это взять нельзя: {settings}",
  tokens: "Длина: {tokens} из {room}",
  cut: "Не поместилось:",
  strange: "Модель не знает слово",
  instead: "Написать «{other}» вместо «{word}»",
  draw: "Нарисовать",
  cancel: "Остановить",
  examples: "Напишите что угодно или начните с одного из этих:",
  ship: "пиратский корабль на море",
  owl: "сова ночью",
  balloons: "три воздушных шара",
  pictures: "Картины",
  history: "Нарисовано раньше",
  empty: "Пока ничего.",
  forget: "Забыть всё",
  key: "Этому серверу нужен ключ",
  go: "Дальше",
  docs: "Для программ: API",
  waiting: "Ждёт очереди",
  drawing: "Рисую…",
  done: "Готово.",
  stopped: "Остановлено.",
  failed: "Нарисовано не всё.",
  step: "Шаг {step} из {steps}",
  vary: "Варианты",
  upscale: "Увеличить",
  begin: "Начать с неё",
  save: "Скачать",
  copy: "Скопировать как…",
  command: "Команда",
  python: "Python",
  curl: "curl",
  copied: "Скопировано.",
  again: "Взять эти настройки: {prompt}",
  unreadable: "Это не картинка, или она повреждена.",
  offline: "Сервер не отвечает. Он запущен? Попробуйте ещё раз.",
  loading: "Модель загружается…",
  picture: "Картина: {prompt}, зерно {seed}",
  setting: "«{name}»",
  refused: "Так нарисовать нельзя. Сервер объясняет по-английски: {error}",
  broken: "Не получилось нарисовать. Сервер объясняет по-английски: {error}",
  late: "Не успели нарисовать за отведённое время. Попросите меньше картин или шагов.",
  busy: "Сейчас слишком много желающих. Попробуйте ещё раз чуть позже.",
  ending: "Сервер выключается или занят загрузкой. Попробуйте ещё раз чуть позже.",
  large: "Картинка слишком большая для этого сервера. Возьмите поменьше.",
};
// What the server warns of, by its English form.
const RUSSIAN_NOTICES = {
  "the model does not know {word}: it draws the rest": "Модель не знает слова {word}: нарисовано остальное.",
  "the model does not know {word}, and draws the rest; it knows {near}": "Модель не знает слова {word}: нарисовано остальное. Она знает {near}.",
  "the model has no word for {words}: it draws the rest": "У модели нет слов для {words}: нарисовано остальное.",
  "the model reads {word} as {meant}": "Модель прочла {word} как {meant}.",
  "the prompt is cut after {length} tokens, leaving out {cut}": "Описание слишком длинное, не поместилось: {cut}.",
  "there is no textual inversion {name}, and the prompt keeps it as words: give it with --embeddings":
    "Встраивания {name} на сервере нет: оно прочитано как обычные слова.",
  "{name} has no effect without {other}: give that too, or leave it out": "Настройка {name} ничего не меняет без {other}.",
  "{name} has no effect (this model takes none): leave it out": "Настройка {name} ничего не меняет: эта модель её не понимает.",
  "{name} has no effect at a {other} of {scale}: raise it above 1, or leave {name} out":
    "Настройка {name} ничего не меняет, пока {other} равно {scale}: поставьте больше 1.",
  "negative_prompt has no effect with this {scale}: raise it, or leave it out": "«Чего не должно быть» ничего не меняет при таком {scale}.",
  "image_guidance_scale is for models that edit by instruction: leave it out": "Настройка image_guidance_scale ничего не меняет у этой модели.",
  "depth is for models that are shown a map of it, which this one is not: leave it out": "Настройка depth ничего не меняет у этой модели.",
  "strength has no effect: this model draws every step, see image_guidance_scale": "«Насколько изменить» ничего не меняет у этой модели.",
  "the safety checker of {model} has blacked out the image of seed {seeds}: try another seed":
    "Проверка модели {model} закрасила картину с зерном {seeds}: попробуйте другое зерно.",
  "decoding in tiles, whose seams may show slightly: a whole decode takes about {needed} GB, and {free} GB are free; --vae-tiling off decodes whole all the same":
    "Памяти мало ({free} ГБ из {needed}): картина собрана из частей, швы могут быть немного видны.",
  "a JPEG has no room for so long a prompt, and is saved without: a PNG has": "В файл JPEG такое длинное описание не поместилось.",
  "a JPEG has no room for what made it, and is saved without: a PNG has": "В файл JPEG не поместилось, как он сделан.",
};
const ENGLISH = {
  seed: "Seed",
  size: "{width} by {height}",
  unread: "This cannot be taken: {settings}",
  kept: "Also from its settings: {settings}",
  tokens: "Length: {tokens} of {room}",
  cut: "Left out:",
  strange: "The model does not know the word",
  instead: "Write “{other}” in place of “{word}”",
  waiting: "Waits for its turn",
  drawing: "Drawing…",
  done: "Done.",
  stopped: "Stopped.",
  failed: "Not everything was drawn.",
  step: "Step {step} of {steps}",
  vary: "Vary",
  upscale: "Enlarge",
  begin: "Begin from it",
  save: "Download",
  copy: "Copy as…",
  command: "Command",
  python: "Python",
  curl: "curl",
  copied: "Copied.",
  again: "Use these settings: {prompt}",
  unreadable: "This is not a picture, or it is damaged.",
  offline: "The server does not answer. Is it running? Try again.",
  loading: "The model is being loaded…",
  picture: "Picture: {prompt}, seed {seed}",
  setting: "“{name}”",
  refused: "{error}",
  broken: "It could not be drawn: {error}",
  late: "There was not time enough to draw it. Ask for fewer pictures or steps.",
  busy: "Too many people are drawing just now. Try again in a moment.",
  ending: "The server is shutting down, or is still loading. Try again in a moment.",
  large: "The picture is too large for this server. Take a smaller one.",
};
const russian = navigator.language.toLowerCase().startsWith("ru");

export function text(name, values = {}) {
  return filled((russian ? RUSSIAN : ENGLISH)[name] ?? name, values);
}

// A warning of the server's: { form, values }. Settings that the page has a field for are called as they are there.
export function notice({ form, values }) {
  const named = Object.entries(values).map(([key, value]) => [key, labelled(value)]);
  const line = filled((russian && RUSSIAN_NOTICES[form]) || form, Object.fromEntries(named));
  return line[0].toUpperCase() + line.slice(1);
}

function labelled(value) {
  const label = /^\w+$/.test(value) && document.querySelector(`#form [name="${value}"]`)?.labels[0];
  return label ? text("setting", { name: label.textContent }) : value;
}

function filled(form, values) {
  return form.replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

// Put the page into the browser's language; English is what it is written in.
export function translate(root) {
  if (!russian) return;
  document.documentElement.lang = "ru";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = RUSSIAN[element.dataset.text];
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = RUSSIAN[element.dataset.label];
}
