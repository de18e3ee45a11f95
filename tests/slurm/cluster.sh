#!/usr/bin/env bash
# A SLURM cluster of one node on the loopback interface, for the tests; as root, on Debian or Ubuntu.
# Usage: tests/slurm/cluster.sh start FOLDER | restart-controller FOLDER | stop FOLDER
# FOLDER gets its configuration, state and logs. Commands of SLURM find it by SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
action=$1
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

install() {
    type slurmctld slurmd srun munged &>/dev/null && return  # all of them, which `command -v` would not say
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge >/dev/null
    service slurmctld stop &>/dev/null || true
    service slurmd stop &>/dev/null || true
}

configure() {
    mkdir -p "$folder"/{state,spool,log}
    chmod 700 "$folder"
    [ -f "$folder/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    cat >"$SLURM_CONF" <<CONF
ClusterName=autosam2
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=5
OverTimeLimit=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
}

wait_for() {
    for _ in $(seq 150); do
        "$@" &>/dev/null && return
        sleep 0.2
    done
    echo "cluster.sh: \`$*\` has not succeeded within 30 s. Its logs: $folder/log" >&2
    exit 1
}

is_idle() { [ "$(sinfo --noheader --format %t)" = idle ]; }

end() {
    local process
    process=$(cat "$1" 2>/dev/null) || return 0
    kill "$process" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$process" 2>/dev/null || break
        sleep 0.1
    done
    rm -f "$1"
}

case $action in
start)
    install
    configure
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
    slurmctld
    slurmd
    wait_for is_idle
    ;;
restart-controller)
    end "$folder/slurmctld.pid"
    slurmctld
    wait_for sinfo
    ;;
stop)
    for daemon in slurmctld slurmd munged; do
        end "$folder/$daemon.pid"
    done
    ;;
*)
    echo "cluster.sh: start, restart-controller or stop, and a folder." >&2
    exit 2
    ;;
esac
