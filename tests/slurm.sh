#!/usr/bin/env bash
# Starts a SLURM of this machine alone, as root, from Debian's packages slurmctld, slurmd, slurm-client and munge: two
# processors, no cgroups, no accounting. tests/test_slurm.py calls it where they are installed.
set -euo pipefail
name=$(hostname -s)
for folder in /run/munge /var/log/munge /var/lib/munge /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /etc/slurm; do
    mkdir -p "$folder"
done
[ -f /etc/munge/munge.key ] || mungekey -c
chown -R munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
cat > /etc/slurm/slurm.conf <<EOF
ClusterName=tiny
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir=/var/spool/slurmd
StateSaveLocation=/var/spool/slurmctld
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=${1:-8000} State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
EOF
pgrep munged > /dev/null || su -s /bin/bash munge -c /usr/sbin/munged
pgrep slurmctld > /dev/null || slurmctld
sleep 2
pgrep slurmd > /dev/null || slurmd
for _ in $(seq 30); do
    sinfo -h -o %T | grep -q idle && exit 0
    sleep 1
done
sinfo
exit 1
