# Read once by every new shell. The shell is interactive for one reason: only then does SIGINT, a syntax error or
# ${x:?} bring it back to its next line instead of ending it. Everything else that "interactive" means is put away.
PS1= PS2= PROMPT_COMMAND=
set +m +H +o history
unset HISTFILE MAILCHECK
shopt -u checkwinsize
