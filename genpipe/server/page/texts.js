// What the page says, in the browser's language.

const RUSSIAN = {
  lead: "Напишите, что хотите увидеть, и это будет нарисовано.",
  ask: "Что нарисовать?",
  prompt: "На картине",
  negative: "Чего не должно быть",
  shape: "Форма",
  square: "Квадрат",
  landscape: "Широкая, 4:3",
  cinema: "Очень широкая, 16:9",
  portrait: "Высокая, 3:4",
  phone: "Очень высокая, 9:16",
  count: "Сколько",
  start: "Начать с картинки",
  drop: "Перетащите картинку сюда или выберите файл.",
  choose: "Выбрать картинку",
  strength: "Насколько изменить",
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
  draw: "Нарисовать",
  cancel: "Остановить",
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
  offline: "Сервер не отвечает. Он запущен? Попробуйте ещё раз.",
  loading: "Модель загружается…",
  picture: "Картина: {prompt}, зерно {seed}",
};
const ENGLISH = {
  seed: "Seed",
  waiting: "Waits for its turn",
  drawing: "Drawing…",
  done: "Done.",
  stopped: "Stopped.",
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
  offline: "The server does not answer. Is it running? Try again.",
  loading: "The model is being loaded…",
  picture: "Picture: {prompt}, seed {seed}",
};
const russian = navigator.language.toLowerCase().startsWith("ru");

export function text(name, values = {}) {
  const found = (russian ? RUSSIAN : ENGLISH)[name] ?? name;
  return found.replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

// Put the page into the browser's language; English is what it is written in.
export function translate(root) {
  if (!russian) return;
  document.documentElement.lang = "ru";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = RUSSIAN[element.dataset.text];
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = RUSSIAN[element.dataset.label];
}
