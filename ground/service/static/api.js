// Requests to the service: with the token where it wants one, and errors as it tells them.

const KEPT = "perigee-token";

export class ServiceError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function headers(more) {
  const token = sessionStorage.getItem(KEPT);
  return token ? { ...more, Authorization: `Bearer ${token}` } : { ...more };
}

let asking = null;

function askToken() {
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("ask");
    const field = document.getElementById("token");
    dialog.addEventListener("close", () => {
      const token = dialog.returnValue === "ok" ? field.value.trim() : "";
      if (token) sessionStorage.setItem(KEPT, token);
      field.value = dialog.returnValue = "";
      asking = null;
      if (token) resolve();
      else reject(new ServiceError(401, "The service wants a token: load the page again to give one."));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function detailOf(answer) {
  try {
    const problem = await answer.json();
    return problem.detail ?? problem.title ?? answer.statusText;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A service that is busy says when to come again; this is done a few times before it counts as an error.
export async function request(path, options = {}, patience = 4) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  if (answer.status === 401) {
    await askToken();
    return request(path, options, patience);
  }
  if (answer.status === 503 && patience > 0) {
    await wait(1000 * Number(answer.headers.get("Retry-After") ?? 1));
    return request(path, options, patience - 1);
  }
  if (!answer.ok) throw new ServiceError(answer.status, await detailOf(answer));
  return answer;
}

export const json = async (path, options) => (await request(path, options)).json();

// XMLHttpRequest tells how far an upload has come, which fetch does not.
export function upload(path, file, progress) {
  return new Promise((resolve, reject) => {
    const asked = new XMLHttpRequest();
    asked.open("PUT", path);
    for (const [name, value] of Object.entries(headers({ "Content-Type": "application/octet-stream" }))) asked.setRequestHeader(name, value);
    asked.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    asked.onerror = () => reject(new ServiceError(0, "the service cannot be reached"));
    asked.onload = async () => {
      if (asked.status === 401) return askToken().then(() => resolve(upload(path, file, progress)), reject);
      let body = {};
      try { body = JSON.parse(asked.responseText); } catch { /* no JSON: the status says enough */ }
      if (asked.status < 300) resolve(body);
      else reject(new ServiceError(asked.status, body.detail ?? `${asked.status} ${asked.statusText}`));
    };
    asked.send(file);
  });
}

export async function save(path, options, name) {
  const answer = await request(path, options);
  const blob = await answer.blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return answer;
}
