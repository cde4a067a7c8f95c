// What was drawn before, kept in this browser: it survives a reload, and nobody else sees it.

const MOST = 60;

function open() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("genpipe", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("drawings", { keyPath: "id" });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function store(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const asked = work(database.transaction("drawings", mode).objectStore("drawings"));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  } finally {
    database.close();
  }
}

export async function entries() {
  const all = await store("readonly", (drawings) => drawings.getAll());
  return all.sort((one, other) => other.time - one.time);
}

export async function keep(entry) {
  await store("readwrite", (drawings) => drawings.put(entry));
  for (const old of (await entries()).slice(MOST)) await store("readwrite", (drawings) => drawings.delete(old.id));
}

export const forget = () => store("readwrite", (drawings) => drawings.clear());
