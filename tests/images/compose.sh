# Sourced by `run`: plays docker-compose.yml. Podman-compose starts a service; what it waits for is awaited here, since
# podman runs health checks by itself only under systemd, and older ones cannot be waited for.

declare -A started=()
readonly patience=180 # seconds

# container SERVICE
container() { podman ps --all --filter "label=com.docker.compose.service=$1" --format '{{.Names}}'; }

# dependencies: a line each: who waits, for whom, until when.
dependencies() {
    podman-compose config 2>/dev/null | awk '
        /^  [^ ]/ { service = $1 }
        /^    [^ ]/ { inside = $1 == "depends_on:" }
        inside && /^      [^ ]/ { awaited = $1 }
        inside && $1 == "condition:" { print service, awaited, $2 }' | tr -d :
}

# profiled: services that only a profile starts; their images have no stand-ins.
profiled() { awk '/^  [^ #].*:$/ { service = $1 } /^    profiles:/ { print service }' docker-compose.yml | tr -d :; }

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
            within $patience podman healthcheck run "$(container "$awaited")" || lost "$awaited" 'does not become healthy'
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

# accepted NAME COUNT: events by the stand-in of Inngest.
accepted() { (($(podman logs "$(container inngest)" 2>&1 | grep -c "^accepted $1 ") >= $2)); }

# readme FIRST: the lines of the README from that pattern to the end of its block.
readme() { awk -v "first=$1" '$0 ~ first { here = 1 } here && /^```/ { exit } here' README.md; }

play_compose() {
    local service event
    dependencies >"$scratch/dependencies"
    expect 'conditions in docker-compose.yml' "$(wc -l <"$scratch/dependencies")" '[1-9]*'
    for service in $(podman-compose config --services | grep -vxFf <(profiled)); do up "$service"; done
    within $patience podman healthcheck run "$(container daemon)" || lost daemon 'does not become healthy'
    say 'the daemon is ready: as it should be'
    # The README's commands, as they stand there.
    docker() { podman-compose "${@:2}"; }
    source <(readme '^# a purchase is completed')
    for event in currency/award mission/evaluate reward/redeemed marketplace/order-received currency/cancelled currency/reverse; do
        within $patience accepted "$event" 1 || lost daemon "sends no $event"
        say "$event: as it should be"
    done
    play_outside
}

# A daemon outside, by the published ports, in the place of the one in the container.
play_outside() {
    podman stop "$(container daemon)" >/dev/null
    cargo() {
        podman run --detach --network host --label com.docker.compose.service=outside \
            --env 'KAFKA_*' --env 'REDIS_*' --env 'SUPABASE_*' --env 'INNGEST_*' --env 'HTTP_*' "$daemon" "$1" >/dev/null
    }
    source <(readme '^KAFKA_BOOTSTRAP_SERVERS=')
    source <(readme '^# a member redeems' | sed '/^# an order/,$d; s/redemption-1/redemption-2/')
    within $patience accepted reward/redeemed 2 || lost outside 'sends no reward/redeemed'
    say 'a daemon outside: as it should be'
}
