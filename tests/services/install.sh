# Sourced by `up`: brings what a service needs and nothing that is there already.
# Sets kafka_jars, opensearch_jars, java, postgres_bin and spicedb where the service uses them.

cache="${CRM_TEST_SERVICES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/crm-event-processors-services}"
jars=
kafka_jars=
opensearch_jars=
java=java
postgres_bin=
readonly spicedb_version=1.56.2
readonly spicedb="$cache/spicedb-$spicedb_version"

# package NAME: installs it, or says that somebody must.
package() {
    local as=()
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null || die "$1 is missing and needs root: apt-get install $1"
        as=(sudo -n)
    fi
    command -v apt-get >/dev/null || die "$1 is missing and there is no apt-get: install it by hand"
    say "installing $1"
    # RUNLEVEL: outside systemd the package must not start a service of its own.
    local output
    output="$("${as[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 bash -c '
        apt-get -qq -o DPkg::Lock::Timeout=300 update &&
        apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$1"' install "$1" 2>&1)" || {
        tail -n 20 >&2 <<<"$output"
        die "$1 could not be installed: see above, then apt-get install $1"
    }
}

java_version() { "$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'; }

install_java() {
    if [[ -n ${JAVA_HOME:-} && -x $JAVA_HOME/bin/java ]]; then java="$JAVA_HOME/bin/java"; fi
    command -v "$java" >/dev/null || package default-jre-headless
    local version
    version="$(java_version)"
    ((${version:-0} >= 17)) || die "java is ${version:-unknown}, Kafka needs 17 or later: set JAVA_HOME"
}

# install_jars POM: copies what it lists into a directory of its own, `jars`.
install_jars() {
    local pom="$here/$1"
    jars="$cache/jars-$(sha256sum "$pom" | cut -c1-16)"
    mkdir -p "$cache"
    (
        flock 9 # of several runs one copies
        [[ -d $jars ]] && exit
        command -v mvn >/dev/null || package maven
        say "copying the jars of $1"
        rm -rf "$jars.part"
        output="$(mvn -q -B -f "$pom" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$jars.part" 2>&1)" || {
            tail -n 20 >&2 <<<"$output"
            die 'maven could not copy the jars: see above'
        }
        mv "$jars.part" "$jars"
    ) 9>"$cache/lock"
}

# find_postgres: the directory of the newest server, 15 or later; nothing where there is none.
find_postgres() {
    local bin version
    for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) "$(dirname "$(command -v postgres || echo /)")"; do
        [[ -x $bin/postgres && -x $bin/initdb ]] || continue
        version="$("$bin/postgres" --version | sed -n 's/[^0-9]*\([0-9]*\).*/\1/p')"
        ((${version:-0} >= 15)) && printf '%s' "$bin" && return
    done
    return 0
}

# spicedb_is_not_to_be_had: why; nothing where it is there or can be built.
spicedb_is_not_to_be_had() {
    if [[ ! -x $spicedb ]] && ! command -v go >/dev/null; then
        echo 'Go is missing, which builds it'
    fi
}

# Its makers give it away as a container or an archive, which a machine may have no way to; its sources come as any Go
# module does.
install_spicedb() {
    (
        flock 9 # of several runs one builds
        [[ -x $spicedb ]] && exit
        say "building spicedb $spicedb_version, which takes some minutes"
        output="$(CGO_ENABLED=0 GOBIN="$spicedb.part" go install -trimpath -ldflags='-s -w' \
            "github.com/authzed/spicedb/cmd/spicedb@v$spicedb_version" 2>&1)" || {
            tail -n 20 >&2 <<<"$output"
            die 'Go could not build spicedb: see above'
        }
        mv "$spicedb.part/spicedb" "$spicedb"
        rmdir "$spicedb.part"
    ) 9>"$spicedb.lock"
}

install_for() {
    case "$1" in
    kafka | connect)
        install_java
        install_jars pom.xml
        kafka_jars="$jars"
        ;;
    opensearch)
        install_java
        install_jars opensearch.xml
        opensearch_jars="$jars"
        ;;
    redis) command -v redis-server >/dev/null || package redis-server ;;
    postgres)
        postgres_bin="$(find_postgres)"
        if [[ -z $postgres_bin ]]; then
            package postgresql
            postgres_bin="$(find_postgres)"
        fi
        [[ -n $postgres_bin ]] || die 'no PostgreSQL 15 or later: install one'
        ;;
    spicedb)
        command -v psql >/dev/null || package postgresql-client
        mkdir -p "$cache"
        install_spicedb
        ;;
    *) die "unknown service $1: kafka, redis, postgres, connect, opensearch or spicedb" ;;
    esac
}
