//! What `help` and `--help` print.

/// The whole of it.
pub(super) const HELP: &str = include_str!("help.txt");

/// The commands that runc does not have.
const OWN: [&str; 15] = [
    "debug", "pod", "drain", "image", "mounts", "plan", "stats", "metrics", "isolator", "network", "volume",
    "recover", "complete", "help", "version",
];

/// The commands that have verbs, and the verb of one that has some, too.
const WITH_VERBS: [&str; 5] = ["pod", "volume", "network", "isolator", "node"];

/// Whether help is asked for before the first word that is neither a verb of `command` nor an option: what comes later can
/// belong to a program.
pub(super) fn is_wanted(parser: &mut lexopt::Parser, command: &str) -> bool {
    let args = parser.try_raw_args();
    let mut has_verb = WITH_VERBS.contains(&command);
    let options = args.iter().flat_map(|args| args.as_slice()).take_while(|arg| {
        let bytes = arg.as_encoded_bytes();
        let is_option = bytes.starts_with(b"-") && bytes != b"--";
        let is_verb =
            !is_option && std::mem::replace(&mut has_verb, WITH_VERBS.iter().any(|verb| *arg == verb));
        is_option || is_verb
    });
    options.into_iter().any(|arg| arg == "-h" || arg == "--help" || arg == "-?")
}

/// The names of the commands that it tells of, in its order.
pub(super) fn commands() -> impl Iterator<Item = &'static str> {
    let lines = HELP.lines().take_while(|line| !line.starts_with("global options"));
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split([' ', ',']).next());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// What the text says of one command: its lines, and the paragraphs of options whose heading names it.
pub(super) fn of(command: &str) -> Option<String> {
    let command = if command == "ls" { "list" } else { command };
    let is_named = |line: &str| line.split([' ', ',', ':', '|']).any(|word| word == command);
    let mut paragraphs = HELP.split("\n\n");
    let commands = paragraphs.by_ref().take_while(|p| !p.starts_with("global options"));
    let mut is_ours = false;
    let is_of_command = |line: &&str| {
        // A line that is further in goes on with the one before.
        if !line.starts_with("   ") {
            is_ours = line.strip_prefix("  ").and_then(|l| l.split([' ', ',']).next()) == Some(command);
        }
        is_ours
    };
    let lines: Vec<&str> = commands.flat_map(str::lines).filter(is_of_command).collect();
    if lines.is_empty() {
        return None;
    }
    let options = paragraphs.filter(|p| p.lines().next().is_some_and(&is_named));
    // Scripts look in the second line for what they called, and most of them called runc.
    let instead =
        if OWN.contains(&command) { String::new() } else { format!(", in place of runc {command}") };
    let mut text = format!(
        "NAME:\n   coracle {command}{instead}\n\nusage: coracle [global options] ...\n{}\n",
        lines.join("\n")
    );
    for paragraph in options {
        text = format!("{text}\n{}\n", paragraph.trim_end());
    }
    Some(text + "\nglobal options: see coracle help\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_help_of_its_own() {
        for (command, words, others) in [
            (
                "run",
                vec!["  run [options] ID", "  run --image REF", "--preserve-fds", "--cpus"],
                "--process FILE",
            ),
            ("exec", vec!["  exec [options] ID PROGRAM", "--process FILE", "--pid-file"], "--cpus"),
            ("update", vec!["  update [options] ID", "--cpuset-mems"], "--pid-file"),
            ("kill", vec!["  kill [--all] [--regex] ID [SIGNAL]"], "--pid-file"),
            ("resume", vec!["  resume ID"], "options of"),
        ] {
            let text = of(command).unwrap();
            assert!(text.starts_with(&format!("NAME:\n   coracle {command}, in place of runc {command}\n")));
            assert!(words.iter().all(|words| text.contains(words)) && !text.contains(others), "{text}");
        }
        assert!(
            of("pod").unwrap().contains("\n  pod create -f") && of("pod").unwrap().contains("--own-users")
        );
        assert_eq!(of("frobnicate"), None);
    }

    #[test]
    fn help_is_wanted_before_the_first_word_that_is_no_verb() {
        let ask = |command, line: &str| is_wanted(&mut lexopt::Parser::from_args(line.split(' ')), command);
        for line in ["--help", "run --help", "node create -h", "exec -i --help"] {
            assert!(ask("pod", line), "{line}");
        }
        assert!(!ask("pod", "exec web ls --help"));
        for (line, wanted) in [
            ("--help", true),
            ("-h", true),
            ("--detach -h", true),
            ("-t web ls --help", false),
            ("-- --help", false),
            ("web", false),
        ] {
            assert_eq!(ask("exec", line), wanted, "{line}");
        }
    }
}
