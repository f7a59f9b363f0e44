//! A name for a service whose owner gave it none.
//!
//! For most programs it is the executable's file name. An interpreter's own name says nothing (every Python service
//! would be `python3`), so its command line is asked for the script, module, archive or class that it runs. A name that
//! could be anybody's (`main`, `app`, `server`) is replaced by the directory or package that holds it. What stays
//! ambiguous keeps the interpreter's name: a dull name is better than a wrong one.

use std::path::Path;

use super::language::Language;

/// Names that tell services apart no better than the interpreter's name does.
const GENERIC: [&str; 43] = [
    "api",
    "app",
    "application",
    "artisan",
    "asgi",
    "backend",
    "bin",
    "bootstrap",
    "build",
    "cmd",
    "code",
    "current",
    "debug",
    "dist",
    "home",
    "index",
    "launcher",
    "lib",
    "local",
    "main",
    "manage",
    "opt",
    "out",
    "package",
    "program",
    "public",
    "rackup",
    "rails",
    "release",
    "root",
    "run",
    "sbin",
    "server",
    "service",
    "src",
    "srv",
    "start",
    "target",
    "tmp",
    "usr",
    "var",
    "web",
    "wsgi",
];

/// How far up from a script its directories are asked for a name.
const PARENTS: usize = 3;

/// Programs that serve the Python application which an argument `module:object` names.
const PYTHON_SERVERS: [&str; 8] =
    ["daphne", "fastapi", "flask", "granian", "gunicorn", "hypercorn", "uvicorn", "waitress-serve"];

/// What a process was started as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Invocation<'a> {
    /// File name of the executable.
    pub(super) executable_name: &'a str,
    /// The command line, the program's own name first.
    pub(super) arguments: &'a [String],
    /// Directory in which the process runs: what relative paths of its arguments start from.
    pub(super) directory: Option<&'a Path>,
}

/// The service's name; never empty unless the executable's name is.
pub(super) fn service_name(invocation: Invocation<'_>) -> String {
    let Invocation { executable_name, arguments, directory } = invocation;
    let (program, rest) = match arguments.split_first() {
        Some((program, rest)) => (file_name(program), rest),
        None => return executable_name.to_owned(),
    };
    if executable_name == "busybox" {
        // Its file is the same for every applet.
        return if program.is_empty() { executable_name.to_owned() } else { program.to_owned() };
    }
    let Some(language) = Language::of_interpreter(executable_name) else {
        // A path tells where the executable lies; a bare name was found on the search path.
        return arguments
            .first()
            .filter(|path| path.contains('/') && file_name(path) == executable_name)
            .and_then(|path| path_name(path, directory))
            .unwrap_or_else(|| executable_name.to_owned());
    };
    let name = if Language::of_interpreter(program).is_none() {
        title_name(arguments)
    } else {
        match language {
            Language::Python => python_name(rest, directory),
            Language::Java => java_name(rest, directory),
            Language::Nodejs => script(rest, &NODE_VALUES, &["run"]).and_then(|path| path_name(path, directory)),
            Language::Ruby => script(rest, &["-I", "-r", "-C", "-E"], &[]).and_then(|path| path_name(path, directory)),
            Language::Php => script(rest, &["-c", "-d", "-S", "-t", "-z"], &[])
                .filter(|_| !rest.iter().any(|argument| argument == "-S"))
                .and_then(|path| path_name(path, directory)),
            Language::Dotnet => script(rest, &[], &["exec"]).filter(|path| extension_is(path, "dll")).map(stem_of),
            Language::Cpp | Language::Generic | Language::Go | Language::Rust => None,
        }
    };
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| executable_name.to_owned())
}

/// Whether a name says no more than what runs the program: an interpreter, or a file called as many are.
pub(super) fn is_dull(name: &str, executable_name: &str) -> bool {
    is_generic(name) || (name == executable_name && Language::of_interpreter(name).is_some())
}

/// Options of Node.js, Deno and Bun whose value is the next argument.
const NODE_VALUES: [&str; 8] =
    ["-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--env-file"];

/// The first argument that is neither an option, nor the value of one, nor a subcommand.
fn script<'a>(arguments: &'a [String], with_value: &[&str], subcommands: &[&str]) -> Option<&'a str> {
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument {
            // Code on the command line, or on standard input: there is no script.
            "-c" | "-e" | "-p" | "--eval" | "--print" | "-" if !with_value.contains(&argument) => return None,
            option if with_value.contains(&option) => {
                arguments.next();
            }
            option if option.starts_with('-') => {}
            subcommand if subcommands.contains(&subcommand) => {}
            script => return Some(script),
        }
    }
    None
}

fn python_name(arguments: &[String], directory: Option<&Path>) -> Option<String> {
    let module = arguments.iter().position(|argument| argument == "-m");
    let script_position = script(arguments, &["-W", "-X"], &[])
        .and_then(|script| arguments.iter().position(|argument| argument == script));
    let (started, rest) = match (module, script_position) {
        // `-m` ends the interpreter's options, so one behind the script belongs to the script.
        (Some(module), script) if script.is_none_or(|script| module < script) => {
            (arguments.get(module + 1)?.as_str(), arguments.get(module + 2..)?)
        }
        (_, Some(script)) => (arguments.get(script)?.as_str(), arguments.get(script + 1..)?),
        (_, None) => return None,
    };
    let server = stem_of(started);
    if PYTHON_SERVERS.contains(&server.as_str()) {
        let module = rest.iter().find_map(|argument| application_module(argument));
        // `fastapi run main.py`; the others take their settings from files of Python.
        let script = rest.iter().find(|argument| server == "fastapi" && extension_is(argument, "py"));
        return match (module, script) {
            (Some(module), _) => Some(module_name(module, directory)),
            (None, Some(script)) => path_name(script, directory),
            (None, None) => Some(server),
        };
    }
    if started.contains('/') || extension_is(started, "py") {
        return path_name(started, directory);
    }
    Some(started.to_owned())
}

/// The module of `package.module:object`, which servers of Python applications are given. An address to listen on
/// (`localhost:8000`) looks alike, but no object's name begins with a digit.
fn application_module(argument: &str) -> Option<&str> {
    let (module, object) = argument.split_once(':')?;
    let is_name = |name: &str| {
        name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    (module.split('.').all(is_name) && object.split(['.', '(']).next().is_some_and(is_name)).then_some(module)
}

/// `shop.web.main` is `shop`; `app.main` in `/srv/orders` is `orders`, and only if that says nothing either `app.main`.
fn module_name(module: &str, directory: Option<&Path>) -> String {
    module
        .rsplit('.')
        .find(|part| !is_generic(part))
        .map(str::to_owned)
        .or_else(|| directory.and_then(directory_name))
        .unwrap_or_else(|| module.to_owned())
}

fn java_name(arguments: &[String], directory: Option<&Path>) -> Option<String> {
    const WITH_VALUE: [&str; 8] =
        ["-cp", "-classpath", "--class-path", "-p", "--module-path", "--add-modules", "--add-opens", "--add-exports"];
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument {
            "-jar" => {
                let jar = arguments.next()?;
                let stem = stem_of(jar);
                let name = without_version(&stem);
                return if is_generic(name) { path_name_of(name, jar, directory) } else { Some(name.to_owned()) };
            }
            "-m" | "--module" => {
                let module = arguments.next()?;
                return Some(module.split('/').next()?.rsplit('.').next()?.to_owned());
            }
            option if WITH_VALUE.contains(&option) => {
                arguments.next();
            }
            option if option.starts_with('-') => {}
            // Starts whatever is on the class path: nothing of it is in its name.
            class if class.starts_with("org.springframework.boot.loader.") => return None,
            class => return class.rsplit('.').find(|part| !is_generic(part)).map(str::to_owned),
        }
    }
    None
}

/// `orders-1.2.3-SNAPSHOT` is `orders`.
fn without_version(stem: &str) -> &str {
    let mut parts = stem.match_indices('-');
    parts
        .find(|(at, _)| stem.get(at + 1..).is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit())))
        .and_then(|(at, _)| stem.get(..at))
        .filter(|name| !name.is_empty())
        .unwrap_or(stem)
}

/// A process that has overwritten its command line with a title: `puma 6.4 (tcp://[::]:3000) [shop]`,
/// `gunicorn: worker [orders]`, `next-server (v15.1)`, `[celeryd: orders@host:MainProcess] -active-`.
fn title_name(arguments: &[String]) -> Option<String> {
    let title = arguments.join(" ");
    let application = title.trim_end().strip_suffix(']').and_then(|title| title.rsplit_once('[')).map(|(_, name)| name);
    let program = title.split_whitespace().next().map(|word| file_name(word).trim_matches(['[', ']', ':']));
    application.filter(|name| !name.is_empty() && !is_generic(name)).or(program).map(str::to_owned)
}

/// The name of a script: its stem, or that of the nearest directory that says more.
fn path_name(script: &str, directory: Option<&Path>) -> Option<String> {
    let stem = stem_of(script);
    if is_generic(&stem) { path_name_of(&stem, script, directory) } else { Some(stem) }
}

/// The name of the nearest directory of `path` that says more than `generic` does, else that.
fn path_name_of(generic: &str, path: &str, directory: Option<&Path>) -> Option<String> {
    let path = directory.map_or_else(|| path.into(), |directory| directory.join(path));
    path.parent().and_then(directory_name).or_else(|| Some(generic.to_owned()))
}

/// The nearest of a few directories whose name says something.
fn directory_name(directory: &Path) -> Option<String> {
    directory
        .ancestors()
        .take(PARENTS)
        // A home directory is named after its owner, not after a service.
        .take_while(|directory| directory.parent() != Some(Path::new("/home")))
        .filter_map(|directory| directory.file_name()?.to_str())
        .find(|name| !is_generic(name))
        .map(str::to_owned)
}

fn is_generic(name: &str) -> bool {
    GENERIC.iter().any(|generic| name.eq_ignore_ascii_case(generic)) || matches!(name, "" | "." | ".." | "__main__")
}

fn extension_is(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|actual| actual == extension)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn stem_of(path: &str) -> String {
    let name = file_name(path);
    match name.rsplit_once('.') {
        Some((stem, "py" | "js" | "mjs" | "cjs" | "ts" | "rb" | "php" | "jar" | "war" | "dll" | "ru")) => {
            stem.to_owned()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::compiled("nginx", "nginx: master process /usr/sbin/nginx", "/", "nginx")]
    #[case::compiled_with_arguments("ollama", "/usr/bin/ollama serve", "/", "ollama")]
    #[case::compiled_generic("main", "/srv/orders/main -p 1", "/", "orders")]
    #[case::compiled_generic_relative("server", "./server", "/srv/orders", "orders")]
    #[case::compiled_generic_on_the_path("server", "server", "/srv/orders", "server")]
    #[case::compiled_generic_installed("server", "/usr/local/bin/server", "/", "server")]
    #[case::compiled_generic_built("main", "target/debug/main", "/srv/orders", "orders")]
    #[case::compiled_generic_everywhere("app", "/app/app", "/", "app")]
    #[case::no_arguments("ollama", "", "/", "ollama")]
    #[case::busybox("busybox", "httpd -f -p 80", "/", "httpd")]
    #[case::python_module("python3.11", "python3 -u -m frigate", "/opt/frigate", "frigate")]
    #[case::python_dotted_module("python3.11", "python3 -m http.server 8000", "/srv/files", "http.server")]
    #[case::python_script("python3.11", "python3 /srv/shop/checkout.py --port 1", "/", "checkout")]
    #[case::python_option_with_value("python3.11", "python3 -W ignore -X dev /srv/shop/checkout.py", "/", "checkout")]
    #[case::python_generic_script("python3.11", "python3 /srv/orders/app.py", "/", "orders")]
    #[case::python_relative_script("python3.11", "python3 main.py", "/srv/orders", "orders")]
    #[case::python_module_of_a_script("python3.11", "python3 /srv/shop/checkout.py -m other", "/", "checkout")]
    #[case::python_generic_everywhere("python3.11", "python3 /usr/src/app/main.py", "/", "main")]
    #[case::python_in_a_home("python3.11", "python3 main.py", "/home/bob", "main")]
    #[case::python_in_a_project_at_home("python3.11", "python3 main.py", "/home/bob/orders/src", "orders")]
    #[case::python_code("python3.11", "python3 -c import-something", "/srv/orders", "python3.11")]
    #[case::python_prompt("python3.11", "python3", "/srv/orders", "python3.11")]
    #[case::django("python3.11", "python manage.py runserver 0.0.0.0:8000", "/srv/library", "library")]
    #[case::uvicorn_module("python3.11", "python -m uvicorn shop.main:app --host 0.0.0.0", "/", "shop")]
    #[case::uvicorn_generic_module("python3.11", "python -m uvicorn app.main:app", "/srv/orders", "orders")]
    #[case::uvicorn_generic_everywhere("python3.11", "python -m uvicorn app.main:app", "/app", "app.main")]
    #[case::uvicorn_script("python3.11", "/usr/bin/python3 /usr/local/bin/uvicorn billing:app", "/", "billing")]
    #[case::gunicorn(
        "python3.11",
        "python3 /venv/bin/gunicorn -b localhost:8000 -k uvicorn.workers.UvicornWorker pay.asgi:application",
        "/",
        "pay"
    )]
    #[case::gunicorn_factory("python3.11", "python3 /venv/bin/gunicorn pay:create_app()", "/", "pay")]
    #[case::gunicorn_without_application("python3.11", "python3 /venv/bin/gunicorn -c conf.py", "/srv/x", "gunicorn")]
    #[case::flask("python3.11", "python3 /venv/bin/flask --app shop.web:app run", "/", "shop")]
    #[case::fastapi("python3.11", "python3 /venv/bin/fastapi run app/main.py", "/srv/orders", "orders")]
    #[case::gunicorn_title("python3.11", "gunicorn: worker [orders]", "/", "orders")]
    #[case::gunicorn_generic_title("python3.11", "gunicorn: master [app]", "/", "gunicorn")]
    #[case::celery_title("python3.11", "[celeryd: orders@host:MainProcess] -active- (worker)", "/", "celeryd")]
    #[case::node_script("node", "node /srv/cart/cart.js", "/", "cart")]
    #[case::node_generic_script(
        "node",
        "node --max-old-space-size=512 -r dotenv/config dist/main.js",
        "/srv/cart",
        "cart"
    )]
    #[case::node_environment_file("node", "node --env-file .env cart.js", "/", "cart")]
    #[case::node_title("node", "next-server (v15.1.0)", "/app", "next-server")]
    #[case::node_own_title("node", "immich", "/usr/src/app", "immich")]
    #[case::node_code("node", "node -e 1", "/", "node")]
    #[case::bun("bun", "bun run /srv/cart/index.ts", "/", "cart")]
    #[case::jar("java", "java -Xmx1g -jar /opt/orders-service-1.4.2-SNAPSHOT.jar --x", "/", "orders-service")]
    #[case::jar_without_version("java", "java -jar app.jar", "/", "app")]
    #[case::generic_jar("java", "java -jar /srv/orders/app-1.2.jar", "/", "orders")]
    #[case::generic_relative_jar("java", "java -jar app.jar", "/srv/orders", "orders")]
    #[case::java_class("java", "java -cp /opt/lib/* com.acme.OrderServer -p 1", "/", "OrderServer")]
    #[case::java_generic_class("java", "java -cp x com.acme.orders.Main", "/", "orders")]
    #[case::java_module("java", "java -p mods -m com.acme.orders/com.acme.orders.Main", "/", "orders")]
    #[case::spring_loader("java", "java org.springframework.boot.loader.launch.JarLauncher", "/", "java")]
    #[case::rails("ruby3.1", "ruby bin/rails server", "/srv/shop", "shop")]
    #[case::puma_title("ruby3.1", "puma 6.4.0 (tcp://0.0.0.0:3000) [shop]", "/srv/shop", "shop")]
    #[case::php_built_in("php8.2", "php -S 0.0.0.0:80 -t public", "/srv/blog", "php8.2")]
    #[case::php_artisan("php8.2", "php artisan serve", "/srv/blog", "blog")]
    #[case::dotnet("dotnet", "dotnet /app/Orders.dll", "/app", "Orders")]
    #[case::dotnet_tool("dotnet", "dotnet watch", "/app", "dotnet")]
    fn names(#[case] executable: &str, #[case] command: &str, #[case] directory: &str, #[case] expected: &str) {
        let arguments: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        let invocation =
            Invocation { executable_name: executable, arguments: &arguments, directory: Some(Path::new(directory)) };
        assert_eq!(service_name(invocation), expected);
    }

    #[test]
    fn the_list_of_generic_names_is_sorted() {
        assert!(GENERIC.is_sorted());
    }

    #[rstest]
    #[case::interpreter("python3.11", "python3.11", true)]
    #[case::everybodys("server", "server", true)]
    #[case::script("orders", "python3.11", false)]
    #[case::program("nginx", "nginx", false)]
    fn some_names_are_dull(#[case] name: &str, #[case] executable_name: &str, #[case] expected: bool) {
        assert_eq!(is_dull(name, executable_name), expected);
    }

    proptest! {
        #[test]
        fn is_never_empty(arguments in proptest::collection::vec(".{0,20}", 0..6), interpreter in "python3|java|node|php|ruby|dotnet|nginx") {
            let invocation = Invocation { executable_name: &interpreter, arguments: &arguments, directory: None };
            prop_assert!(!service_name(invocation).is_empty());
        }
    }
}
