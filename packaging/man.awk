# A manual page (man(7)) of what `coracle help`, `coracle COMMAND --help` or `coracle image help` prints: its paragraphs are
# sections; a line is a term and what it means, split where two blanks stand; a line that is further in goes on.
# Needs -v version=VERSION, and of a command's page -v command=NAME.
function escaped(text) {
	gsub(/\\/, "\\e", text); gsub(/-/, "\\-", text)
	return text
}
# The page begins with what it is in one line, which stands in the first term's meaning.
function begin(what) {
	if (begun) return
	begun = 1
	name = "coracle" (command ? "-" command : "")
	printf ".TH %s 1 \"\" \"coracle %s\" \"User Commands\"\n.SH NAME\n", toupper(escaped(name)), version
	printf "%s \\- %s\n.SH SYNOPSIS\n%s\n", escaped(name), escaped(what), escaped(synopsis)
}
BEGIN {
	synopsis = "coracle [global options] " (command ? command " ..." : "COMMAND [options] [arguments]")
	if (!command) begin("a native container runtime for Linux")
}
/^NAME:$/ || /^   coracle/ || /^[Uu]sage: / || /^$/ || /^global options: see/ { next }
/^coracle-image / { sub(/^coracle-image /, ""); begin($0); next }
/^[A-Za-z]/ { begin("a command of coracle"); sub(/:$/, ""); printf ".SH %s\n", toupper(escaped($0)); next }
{
	inset = match($0, /[^ ]/)
	sub(/^ +/, "")
	split_at = match($0, /  +/)
	if (split_at) {
		meaning = substr($0, split_at + RLENGTH)
		if (!begun) { begin(meaning); print ".SH COMMANDS" }
		printf ".TP\n.B %s\n%s\n", escaped(substr($0, 1, split_at - 1)), escaped(meaning)
	} else if (inset > 10) print escaped($0)
	else {
		if (!begun) { begin("a command of coracle"); print ".SH COMMANDS" }
		printf ".TP\n.B %s\n", escaped($0)
	}
}
END {
	printf ".SH SEE ALSO\n%s.BR runc (8),\n.BR crun (1),\n.BR cgroups (7),\n.BR namespaces (7)\n", command ? ".BR coracle (1),\n" : ""
}
