#!/usr/bin/env bash
# A real SLURM of three nodes with accounting on one Debian host, as root, without systemd, for tests/slurm.
#   cluster.sh up      installs what is missing (apt-get), starts it, waits until its nodes are idle
#   cluster.sh down    ends it
# Its state lies in one folder of its own, /var/lib/opd-slurm, but for /etc/slurm, which SLURM's commands read.
set -euo pipefail
state=/var/lib/opd-slurm
host=$(hostname -s)
pids=(slurmd-n1 slurmd-n2 slurmd-n3 slurmctld slurmdbd mariadbd munged)

# A daemon that has ended removes its own file, perhaps while it is read.
pid_of() { cat "$state/$1.pid" 2>/dev/null || true; }

down() {
  if [ -n "$(pid_of slurmctld)" ]; then
    # Jobs of daemons that are gone would run on, and hold what they hold.
    timeout 10 scancel --full --signal=KILL $(timeout 10 squeue -h -o %A 2>/dev/null) 2>/dev/null || true
    timeout 10 scancel --user=root 2>/dev/null || true
    for _ in $(seq 50); do [ -z "$(timeout 10 squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
  fi
  for name in "${pids[@]}"; do
    pid=$(pid_of "$name")
    [ -n "$pid" ] || continue
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  rm -rf "$state"
}

[ "${1:-up}" = up ] || { down; exit 0; }
for tool in slurmctld slurmd slurmdbd mariadbd munged; do
  if ! command -v "$tool" >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurm-wlm slurmdbd munge mariadb-server >/dev/null
    break
  fi
done
down
mkdir -p "$state"/{ctld,n1,n2,n3,db,log} /etc/slurm
chmod 755 "$state"; chown munge: "$state/log"

[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=128 2>/dev/null; }
chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key
mkdir -p /run/munge "$state/munge"; chown munge: /run/munge "$state/munge"
runuser -u munge -- /usr/sbin/munged --pid-file="$state/munge/munged.pid" --seed-file="$state/munge/seed" \
  --log-file="$state/munge/munged.log"
ln -s munge/munged.pid "$state/munged.pid"

chown mysql: "$state/db"
mariadb-install-db --user=mysql --datadir="$state/db" --skip-test-db >/dev/null 2>&1
setsid mariadbd --no-defaults --user=mysql --datadir="$state/db" --socket="$state/db/socket" --bind-address=127.0.0.1 --port=13306 \
  --innodb-buffer-pool-size=64M --pid-file="$state/db/mariadbd.pid" >"$state/log/mariadbd.log" 2>&1 &
ln -s db/mariadbd.pid "$state/mariadbd.pid"
sql() { mariadb --no-defaults --socket="$state/db/socket" "$@"; }
for _ in $(seq 60); do sql -e 'select 1' >/dev/null 2>&1 && break; sleep 0.5; done
sql -e "create database slurm_acct_db; create user 'slurm'@'127.0.0.1' identified by 'slurm';
        grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'; flush privileges;"

cat > /etc/slurm/slurmdbd.conf <<E
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$state/log/slurmdbd.log
PidFile=$state/slurmdbd.pid
E
chmod 600 /etc/slurm/slurmdbd.conf
cat > /etc/slurm/slurm.conf <<E
ClusterName=opdtest
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for its credential to expire: 120 s unless told otherwise.
AuthInfo=cred_expire=6
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=20
SlurmdParameters=config_overrides
NodeName=n[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17003] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
E
rm -f /etc/slurm/cgroup.conf
slurmdbd
for _ in $(seq 60); do sacctmgr -n show cluster >/dev/null 2>&1 && break; sleep 0.5; done
sacctmgr -i add cluster opdtest >/dev/null 2>&1 || true
slurmctld
for node in n1 n2 n3; do slurmd -N "$node"; done
for _ in $(seq 60); do [ "$(sinfo -h -N -o %t -p debug 2>/dev/null | grep -c idle)" = 3 ] && exit 0; sleep 0.5; done
echo "cluster.sh: the nodes did not come up; see $state/log" >&2
tail -n 5 "$state"/log/*.log >&2
exit 1
