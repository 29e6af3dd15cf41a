# Shared by `up` and `down`: what a run is and how one of its services is told from a stranger.
#
# A run is a directory <temporary dir>/crm-event-processors-services.XXXXXX with
#   env              the exports that `up` prints
#   <service>/start  starts it in the foreground; used again for a restart
#   <service>/pid    process id and start time; a process id alone may be somebody else's by now
#   <service>/port, log and data

temporary="${TMPDIR:-/tmp}"

say() { printf 'services: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# start_time PID: of a living process that is no zombie.
start_time() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }" # the command's name before it may hold spaces
    [[ ${fields[0]} != Z ]] && printf '%s' "${fields[19]}"
}

# alive DIR: the service of that directory runs.
alive() {
    local pid started
    { read -r pid started <"$1/pid"; } 2>/dev/null || return 1
    [[ $(start_time "$pid") == "$started" ]]
}

# within SECONDS COMMAND...: polls until the command succeeds; fails at the deadline.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}
