//! One trivial handler per language, as a function and behind a bare HTTP server of the same language.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::site::{self, Plain, Programs};

/// What the handler is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Native,
    Python,
    Nodejs,
}

const PYTHON: &str = "import time\n\ndef handler(event, context):\n    return {\"started_ns\": time.monotonic_ns()}\n";
const NODEJS: &str = "exports.handler = async () => ({ started_ns: Number(process.hrtime.bigint()) });\n";

/// Standard library only; workers share the listening socket.
const PYTHON_SERVER: &str = r#"
import http.server, json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from main import handler

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(handler(event, None)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("127.0.0.1:%d" % server.server_address[1], flush=True)
parent = os.getpid()
for _ in range(int(sys.argv[2]) - 1):
    if os.fork() == 0:
        import ctypes
        ctypes.CDLL(None).prctl(1, 9)  # die with the parent
        break
server.serve_forever()
"#;

const NODEJS_SERVER: &str = r#"
const cluster = require("cluster");
const http = require("http");
const { handler } = require(process.argv[2] + "/index.js");
const workers = Number(process.argv[3]);

function serve() {
  const server = http.createServer((request, response) => {
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", async () => {
      const body = JSON.stringify(await handler(JSON.parse(Buffer.concat(pieces))));
      response.writeHead(200, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) });
      response.end(body);
    });
  });
  server.keepAliveTimeout = 600000;
  server.listen(0, "127.0.0.1", () => {
    const address = `127.0.0.1:${server.address().port}`;
    if (cluster.isPrimary) console.log(address);
    else process.send(address);
  });
}

if (workers === 1 || !cluster.isPrimary) serve();
else {
  let listening = 0;
  for (let i = 0; i < workers; i++) {
    cluster.fork().on("message", (address) => {
      listening += 1;
      if (listening === workers) console.log(address);
    });
  }
}
"#;

/// A bare server, with the folder that its program lies in.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) plain: Plain,
    _folder: tempfile::TempDir,
}

impl Language {
    pub(crate) const ALL: [Self; 3] = [Self::Native, Self::Python, Self::Nodejs];

    /// The runtime's name.
    pub(crate) const fn runtime(self) -> &'static str {
        match self {
            Self::Native => "provided",
            Self::Python => "python",
            Self::Nodejs => "nodejs",
        }
    }

    /// The head of a function's `takt.toml`.
    pub(crate) fn toml(self, name: &str) -> String {
        let handler = match self {
            Self::Native => "",
            Self::Python => "handler = \"main.handler\"\n",
            Self::Nodejs => "handler = \"index.handler\"\n",
        };
        format!("name = \"{name}\"\nruntime = \"{}\"\n{handler}memory = \"128MB\"\n", self.runtime())
    }

    /// The function's package.
    pub(crate) fn package(self, programs: &Programs) -> Result<String> {
        match self {
            Self::Native => site::burner_package(programs),
            Self::Python => site::package(&self.toml("handler"), &[("main.py", PYTHON.as_bytes(), 0o644)]),
            Self::Nodejs => site::package(&self.toml("handler"), &[("index.js", NODEJS.as_bytes(), 0o644)]),
        }
    }

    /// The same handler behind a bare server, in so many processes where the language needs several for several cores.
    pub(crate) fn bare(self, programs: &Programs, workers: usize) -> Result<Bare> {
        let folder = tempfile::tempdir()?;
        let (interpreter, server, code, name) = match self {
            Self::Native => return Ok(Bare { plain: Plain::burner(programs)?, _folder: folder }),
            Self::Python => ("python3", PYTHON_SERVER, PYTHON, "main.py"),
            Self::Nodejs => ("node", NODEJS_SERVER, NODEJS, "index.js"),
        };
        std::fs::write(folder.path().join(name), code)?;
        let program = folder.path().join(format!("server.{}", if self == Self::Python { "py" } else { "cjs" }));
        std::fs::write(&program, server)?;
        let mut command = Command::new(interpreter);
        command.arg(&program).arg(folder.path()).arg(workers.to_string()).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(Bare { plain: Plain::start(&mut command)?, _folder: folder })
    }
}
