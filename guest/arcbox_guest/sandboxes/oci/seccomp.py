"""The system calls that processes in sandboxes may make.

What podman and buildah allow, less what reaches past a sandbox: mounts, namespaces, io_uring, vsock. Where their
profile is not installed, a list of our own stands in, which is as strict. What is not named does not exist (ENOSYS), so
that programs fall back to what does; what programs are known to probe for as root is forbidden (EPERM).
"""

from __future__ import annotations

import errno
import json
import platform
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_FILES: Final = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
    fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr
    lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64
    preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename
    renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink
    symlinkat sync sync_file_range sync_file_range2 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat
    utimensat_time64 utimes vmsplice write writev cachestat
"""

_MEMORY: Final = """
    brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
    mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    process_madvise process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node
"""

_PROCESSES: Final = """
    alarm arch_prctl capget capset chroot execve execveat exit exit_group fork futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid
    getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
    getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self pause personality pidfd_open pidfd_send_signal
    prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32
    sigaltstack signalfd signalfd4 sigprocmask sigreturn sysinfo tgkill time times tkill ugetrlimit uname vfork wait4
    waitid waitpid
"""

_WAITING_AND_TIME: Final = """
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 epoll_create
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
    gettimeofday io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit nanosleep
    _newselect pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64
"""

_TALKING: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv
    recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg
    sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair
"""

_FORBIDDEN: Final = """
    acct add_key adjtimex bpf clock_adjtime clock_adjtime64 clock_settime clock_settime64 delete_module fanotify_init
    finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount move_pages migrate_pages
    nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root quotactl quotactl_fd reboot
    request_key setdomainname sethostname setns settimeofday socketcall stime swapoff swapon syslog umount umount2
    unshare userfaultfd vhangup
"""

_NAMESPACES: Final = 0x7E02_0080
"""CLONE_NEW…: new namespaces give the rights of root in them, to which kernels have had many a hole."""

_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
"""Of sockets, all of which the network namespace has to itself. AF_VSOCK has no namespaces: with it, a sandbox could
talk to the host, and to the agent. The socketcall of 32 bits takes the family where a filter can't see it, and is
forbidden by its name: else libseccomp would allow it along with socket, which C libraries use since Linux 4.3."""

_INT: Final = 0xFFFF_FFFF
"""The bits that the kernel takes of an int. A filter sees 64 of them, and the others are the caller's to choose."""

_COMMON: Final = Path("/usr/share/containers/seccomp.json")
"""The profile of podman and buildah, of Debian's package golang-github-containers-common."""

_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")),
    "aarch64": ("arm64", ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")),
}
"""By uname(2): as the common profile calls them, and what a filter is for, 32 bits too. One that is not here has a
filter for its own calls only: that stops a program of another architecture at its first call."""

_ALLOW: Final = "SCMP_ACT_ALLOW"


def profile(capabilities: Container[str], machine: str = platform.machine(), common: Path = _COMMON) -> dict[str, Any]:
    """The profile, as `linux.seccomp` of an OCI config.

    Args:
        capabilities: that root of the sandbox has.
        machine: the architecture, as uname(2) has it.
        common: what containers are allowed elsewhere. Where there is no such file, a list of our own stands in.
    """
    name, architectures = _ARCHITECTURES.get(machine, ("", ()))
    ours = f"{_FILES} {_MEMORY} {_PROCESSES} {_WAITING_AND_TIME} {_TALKING}".split()
    allowed = _common_rules(common, name, capabilities) or [{"names": ours, "action": _ALLOW}]
    found: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": [
            *allowed,
            # clone3 takes its flags where a filter can't see them; without it, programs use clone.
            {"names": ["clone"], "action": _ALLOW, "args": [_masked(0, _NAMESPACES, 0)]},
            *({"names": ["socket"], "action": _ALLOW, "args": [_masked(0, _INT, family)]} for family in _FAMILIES),
            {"names": _FORBIDDEN.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        ],
    }
    if architectures:
        found["architectures"] = list(architectures)
    return found


def _common_rules(path: Path, architecture: str, capabilities: Container[str]) -> list[dict[str, Any]]:
    """What the common profile allows, less what is decided here: it lets any family of sockets through, and mounts.

    Nothing when the file is not there, or can't be understood.
    """
    decided = {"clone", "clone3", "socket", *_FORBIDDEN.split()}
    rules = []
    try:
        for rule in json.loads(path.read_text())["syscalls"]:
            names = [name for name in rule["names"] if name not in decided]
            if names and rule["action"] == _ALLOW and _applies(rule, architecture, capabilities):
                rules.append({"names": names, "action": _ALLOW, "args": rule.get("args") or []})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return rules


def _applies(rule: Mapping[str, Any], architecture: str, capabilities: Container[str]) -> bool:
    needs, excluded = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        architecture in needs.get("arches", [architecture])
        and architecture not in excluded.get("arches", [])
        and all(name in capabilities for name in needs.get("caps", []))
        and not any(name in capabilities for name in excluded.get("caps", []))
    )


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    """That an argument has a value in the bits of a mask."""
    return {"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": int(value)}
