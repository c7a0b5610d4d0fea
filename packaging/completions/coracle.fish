# Completion of coracle for fish. It offers files, too.
complete --command coracle --arguments '(coracle complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
