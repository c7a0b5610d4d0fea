# Completion of coracle for bash. Where it offers nothing, files are.
_coracle() {
	mapfile -t COMPREPLY < <(coracle complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _coracle coracle
