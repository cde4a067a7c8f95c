// A request as other tools spell it: a command, Python, curl.

const quoted = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;

function others(request) {
  const { prompt, image, width, height, ...rest } = request;
  return rest;
}

export function command(request) {
  const words = ["genpipe", "generate", "--prompt", quoted(request.prompt)];
  for (const [name, value] of Object.entries(others(request))) {
    if (name === "n") words.push("-n", value);
    else if (name === "model" && value === "embedded") continue;
    else words.push(`--${name.replaceAll("_", "-")}`, /^[\w.]+$/.test(value) ? value : quoted(value));
  }
  if (request.width) words.push("--size", `${request.width}x${request.height}`);
  if (request.image) words.push("--image", "FILE");
  return words.join(" ");
}

export function python(request) {
  const given = [JSON.stringify(request.prompt)];
  for (const [name, value] of Object.entries(others(request))) {
    if (name === "model" && value === "embedded") continue;
    given.push(`${name}=${name === "seed" || name === "vary_seed" ? value : JSON.stringify(value)}`);
  }
  if (request.width) given.push(`width=${request.width}`, `height=${request.height}`);
  if (request.image) given.push('image="FILE"');
  return `from genpipe import generate\ngenerate(${given.join(", ")})`;
}

export function curl(request, address, key) {
  const body = { ...request, ...(request.image ? { image: "BASE64" } : {}) };
  const header = key ? " -H 'Authorization: Bearer KEY'" : "";
  return `curl ${address}/v1/images/generations${header} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
}
