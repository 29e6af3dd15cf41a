# Sourced by `run`: plays docker-compose.yml. Podman-compose starts a service; what it waits for is awaited here, since
# podman runs health checks by itself only under systemd, and older ones cannot be waited for.

declare -A started=()
readonly patience=180 # seconds

# container SERVICE
container() { podman ps --all --filter "label=com.docker.compose.service=$1" --format '{{.Names}}'; }

# within COMMAND...: polls until it succeeds.
within() {
    local deadline=$((SECONDS + patience))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}

# dependencies: a line each: who waits, for whom, until when.
dependencies() {
    podman-compose config 2>/dev/null | awk '
        /^  [^ ]/ { service = $1 }
        /^    [^ ]/ { inside = $1 == "depends_on:" }
        inside && /^      [^ ]/ { awaited = $1 }
        inside && $1 == "condition:" { print service, awaited, $2 }' | tr -d :
}

# up SERVICE: after all that it waits for.
up() {
    [[ -z ${started[$1]:-} ]] || return 0
    local waits wait awaited condition
    mapfile -t waits < <(grep "^$1 " "$scratch/dependencies")
    for wait in "${waits[@]}"; do
        read -r _ awaited condition <<<"$wait"
        up "$awaited"
        case "$condition" in
        service_healthy)
            within podman healthcheck run "$(container "$awaited")" || lost "$awaited" 'does not become healthy'
            ;;
        service_completed_successfully)
            (($(timeout "$patience" podman wait "$(container "$awaited")") == 0)) || lost "$awaited" 'fails'
            ;;
        esac
        say "$1: $awaited is ${condition#service_}"
    done
    podman-compose up --detach --no-deps --no-build "$1" >"$scratch/up.log" 2>&1 || {
        cat "$scratch/up.log" >&2
        die "$1 does not start"
    }
    started[$1]=yes
}

# lost SERVICE WHAT
lost() {
    podman logs --tail 30 "$(container "$1")" >&2 || true
    die "$1 $2: see above"
}

# accepted NAME: by the stand-in of Inngest, at least once.
accepted() { podman logs "$(container inngest)" 2>&1 | grep -q "^accepted $1 "; }

play_compose() {
    local service event
    dependencies >"$scratch/dependencies"
    expect 'conditions in docker-compose.yml' "$(wc -l <"$scratch/dependencies")" '[1-9]*'
    for service in $(podman-compose config --services); do up "$service"; done
    within podman healthcheck run "$(container daemon)" || lost daemon 'does not become healthy'
    say 'the daemon is ready: as it should be'
    # The README's commands, as they stand there.
    docker() { podman-compose "${@:2}"; }
    source <(awk '/^# a purchase is completed/ { here = 1 } here && /^```/ { exit } here' README.md)
    for event in currency/award mission/evaluate reward/redeemed marketplace/order-received currency/cancelled currency/reverse; do
        within accepted "$event" || lost daemon "sends no $event"
        say "$event: as it should be"
    done
}
