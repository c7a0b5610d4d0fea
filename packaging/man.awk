# A manual page (man(7)) of what `coracle help` prints: its paragraphs are sections, its lines terms with what they
# mean, split where two blanks stand. Needs -v version=VERSION.
function escaped(text) {
	gsub(/\\/, "\\e", text); gsub(/-/, "\\-", text)
	return text
}
BEGIN {
	printf ".TH CORACLE 1 \"\" \"coracle %s\" \"User Commands\"\n.SH NAME\ncoracle \\- a native container runtime for Linux\n", version
}
/^NAME:$/ || /^   coracle - / { next }
/^usage: / { sub(/^usage: /, ""); printf ".SH SYNOPSIS\n%s\n", escaped($0); next }
/^$/ { next }
/^[a-z]/ { printf ".SH %s\n", toupper(escaped($0)); next }
{
	sub(/^ +/, "")
	split_at = match($0, /  +/)
	if (split_at) printf ".TP\n.B %s\n%s\n", escaped(substr($0, 1, split_at - 1)), escaped(substr($0, split_at + RLENGTH))
	else printf ".br\n%s\n", escaped($0)
}
END {
	print ".SH SEE ALSO\n.BR runc (8),\n.BR crun (1),\n.BR cgroups (7),\n.BR namespaces (7)"
}
