// A request as other tools spell it: a command, Python, curl.

const quoted = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;

function others(request) {
  const { prompt, image, mask, width, height, ...rest } = request;
  return rest;
}

// What stands for the pictures that a request carries.
function files(request) {
  return { ...(request.image && { image: "FILE.png" }), ...(request.mask && { mask: "MASK.png" }) };
}

export function command(request) {
  const words = ["genpipe", "generate", "--prompt", quoted(request.prompt)];
  for (const [name, value] of Object.entries(others(request))) {
    if (name === "n") words.push("-n", value);
    else if (name === "model" && value === "embedded") continue;
    else words.push(`--${name.replaceAll("_", "-")}`, /^[\w.]+$/.test(value) ? value : quoted(value));
  }
  if (request.width) words.push("--size", `${request.width}x${request.height}`);
  for (const [name, file] of Object.entries(files(request))) words.push(`--${name}`, file);
  return words.join(" ");
}

export function python(request) {
  const given = [JSON.stringify(request.prompt)];
  for (const [name, value] of Object.entries(others(request))) {
    if (name === "model" && value === "embedded") continue;
    given.push(`${name}=${name === "seed" || name === "vary_seed" ? value : JSON.stringify(value)}`);
  }
  if (request.width) given.push(`width=${request.width}`, `height=${request.height}`);
  for (const [name, file] of Object.entries(files(request))) given.push(`${name}="${file}"`);
  return `from genpipe import generate\ngenerate(${given.join(", ")})`;
}

export function curl(request, address, key) {
  const body = { ...request, ...Object.fromEntries(Object.keys(files(request)).map((name) => [name, "BASE64"])) };
  const header = key ? " -H 'Authorization: Bearer KEY'" : "";
  return `curl ${address}/v1/images/generations${header} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
}
