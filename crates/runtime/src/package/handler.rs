//! Whether a package holds the file that a handler names. What the file does when it is loaded, only an instance shows.

use std::fs;
use std::path::Path;

use model::{FunctionSpec, Runtime};

use super::{Error, check_provided};

/// Checks that unpacked code has the file in which the runtime will look for the function's handler, or, for `provided`, the
/// program it starts. Blocks on the disk for a few looks.
///
/// A Python function that states `PYTHONPATH` may have its module anywhere and is not looked at further.
pub fn check_handler(spec: &FunctionSpec, code: &Path) -> Result<(), Error> {
    match spec.runtime {
        Runtime::Provided => check_provided(code),
        Runtime::Python if spec.environment.contains_key("PYTHONPATH") => Ok(()),
        Runtime::Python => python(&spec.handler, code),
        Runtime::NodeJs => nodejs(&spec.handler, code),
    }
}

fn malformed(handler: &str, form: &'static str) -> Error {
    Error::HandlerForm { handler: handler.to_owned(), form }
}

fn missing(handler: &str, looked_for: String) -> Error {
    Error::NoHandler { handler: handler.to_owned(), looked_for }
}

/// `module.function`, folders of the module written with `/` or `.`.
fn python(handler: &str, code: &Path) -> Result<(), Error> {
    let malformed = || malformed(handler, "module.function");
    let (module, function) = handler.rsplit_once('.').ok_or_else(malformed)?;
    let parts: Vec<&str> = module.split(['.', '/']).collect();
    let Some((name, folders)) = parts.split_last() else { return Err(malformed()) };
    if function.is_empty() || parts.iter().any(|part| part.is_empty()) {
        return Err(malformed());
    }
    let folder = folders.iter().fold(code.to_owned(), |folder, part| folder.join(part));
    if is_module(&folder, name) || is_module(&folder.join(name), "__init__") {
        Ok(())
    } else {
        Err(missing(handler, format!("{}.py", parts.join("/"))))
    }
}

/// Whether a folder has a module of this name as source, compiled, or native (`name.cpython-312-x86_64-linux-gnu.so`).
fn is_module(folder: &Path, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let file = entry.file_name();
        let ending = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.')?.rsplit('.').next());
        matches!(ending, Some("py" | "pyc" | "so"))
    })
}

/// `module.export`, the module with its folders; what `require` finds at that place is a module too.
fn nodejs(handler: &str, code: &Path) -> Result<(), Error> {
    let from = handler.rfind('/').map_or(0, |slash| slash + 1);
    let dot = handler[from..].find('.').map(|dot| from + dot);
    let split = dot.filter(|dot| from < *dot && dot + 1 < handler.len() && !handler.contains(".."));
    let Some((module, _)) = split.and_then(|dot| handler.split_at_checked(dot)) else {
        return Err(malformed(handler, "module.export"));
    };
    let is_file = |ending: &&str| code.join(format!("{module}{ending}")).is_file();
    if module.starts_with('/') || code.join(module).is_dir() || ["", ".js", ".mjs", ".cjs", ".json", ".node"].iter().any(is_file)
    {
        Ok(())
    } else {
        Err(missing(handler, format!("{module}.js, .mjs or .cjs")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a handler in a package of these files; empty: it is taken.
    fn check(runtime: &str, handler: &str, files: &[&str], expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let text = format!("name = \"f\"\nruntime = \"{runtime}\"\nhandler = \"{handler}\"\n");
        let spec = model::config::parse(&text).unwrap();
        let said = check_handler(&spec, folder.path()).err().map_or_else(String::new, |error| error.to_string());
        assert!(if expected.is_empty() { said.is_empty() } else { said.contains(expected) }, "{handler} in {files:?}: {said}");
    }

    #[test]
    fn a_python_module_is_found_wherever_python_finds_it() {
        for (handler, file) in [
            ("app.run", "app.py"),
            ("app.run", "app.cpython-312-x86_64-linux-gnu.so"),
            ("app.run", "app/__init__.py"),
            ("a.b.c.run", "a/b/c.py"),
            ("a/b.run", "a/b.py"),
        ] {
            check("python3.12", handler, &[file], "");
        }
        for (handler, file) in [("app.run", "main.py"), ("app.run", "app/main.py"), ("a.b.run", "a/c.py"), ("a.run", "ab.py")] {
            check("python3.12", handler, &[file], ".py");
        }
        for handler in ["run", ".run", "app.", "../app.run", "/etc/app.run", "a..run"] {
            check("python3.12", handler, &["app.py"], "module.function");
        }
    }

    #[test]
    fn a_node_module_is_found_wherever_node_finds_it() {
        for (handler, file) in [
            ("index.handler", "index.js"),
            ("index.outer.inner", "index.mjs"),
            ("src/app.run", "src/app.cjs"),
            ("lib.run", "lib/index.js"),
        ] {
            check("nodejs22.x", handler, &[file], "");
        }
        check("nodejs22.x", "index.handler", &["main.js"], "index.js");
        for handler in ["index", ".handler", "index.", "../index.handler"] {
            check("nodejs22.x", handler, &["index.js"], "module.export");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_handler_is_too_strange(handler in "[a./\u{e9}_-]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            let _any_answer = (python(&handler, folder.path()).is_ok(), nodejs(&handler, folder.path()).is_ok());
        }
    }
}
