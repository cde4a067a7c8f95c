// What was drawn before, kept in this browser: it survives a reload, and nobody else sees it.

const MOST = 60;

function open() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("genpipe", 2);
    asked.onupgradeneeded = () => {
      const database = asked.result; // what an earlier version kept had another form
      if (database.objectStoreNames.contains("drawings")) database.deleteObjectStore("drawings");
      database.createObjectStore("drawings", { keyPath: "id" });
    };
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

const all = async () => (await store("readonly", (drawings) => drawings.getAll())).sort((one, other) => other.time - one.time);

// What was drawn, the latest first.
export const entries = async () => (await all()).filter((entry) => entry.images.length);

// One drawing, finished or not.
export const entry = (id) => store("readonly", (drawings) => drawings.get(id));

export async function keep(entry) {
  await store("readwrite", (drawings) => drawings.put(entry));
  for (const old of (await all()).slice(MOST)) await store("readwrite", (drawings) => drawings.delete(old.id));
}

export const forget = () => store("readwrite", (drawings) => drawings.clear());
