package escape

// Script is an attempt from inside a container. It exits with 0 if it succeeds. It does
// not change the host even then: it opens files of the kernel for writing, but does not
// write to them.
type Script struct{ What, Text string }

// Detached returns a script that runs another script in a directory after all mounts in it
// are removed: they are detached together with the whole tree, in a mount namespace of its
// own. The other script has only busybox.
func Detached(dir, script string) string {
	return `unshare -m sh -ec '
mkdir -p /tmp/new
mount -t tmpfs new /tmp/new
mkdir /tmp/new/bin /tmp/new/old
cp /bin/busybox /tmp/new/bin/busybox
cd ` + dir + `
pivot_root /tmp/new /tmp/new/old
/bin/busybox umount -l /old
` + script + `'
`
}

// Tools are the programs that the scripts need.
var Tools = []string{"date", "dd", "dmesg", "losetup", "mknod", "mount", "nsenter", "pivot_root", "swapon", "timeout", "umount", "unshare"}

// Inside lists the attempts that are made in a booted container, and in a command with all
// capabilities that a user namespace can have.
var Inside = []Script{
	{"node of a disk", "mknod /tmp/node b 8 0"},
	{"node of the memory", "mknod /tmp/node c 1 1"},
	{"node of the kernel's log", "mknod /tmp/node c 1 11"},
	{"node in a file system of one's own", "mount -t tmpfs -o dev x /mnt && mknod /mnt/node c 1 11"},
	{"program for core dumps", ": >>/proc/sys/kernel/core_pattern"},
	{"program that loads modules", ": >>/proc/sys/kernel/modprobe"},
	{"caches of the host", ": >>/proc/sys/vm/drop_caches"},
	{"magic keys", ": >>/proc/sysrq-trigger"},
	{"program for events of devices", ": >>/sys/kernel/uevent_helper"},
	{"pages of the kernel's choice", ": >>/sys/kernel/mm/transparent_hugepage/enabled"},
	{"sysctls, mounted writable", "mount -o remount,bind,rw /proc/sys && : >>/proc/sys/kernel/core_pattern"},
	{"sysctls, uncovered", "umount -l /proc/sys && : >>/proc/sys/kernel/core_pattern"},
	{"sysctls in another /proc", "mount -t proc x /mnt && : >>/mnt/sys/kernel/core_pattern"},
	{"sysctls in a namespace in a namespace", "unshare -Urmpf sh -c 'mount -t proc x /mnt && : >>/mnt/sys/kernel/core_pattern'"},
	{"/sys, mounted writable", "mount -o remount,rw /sys && : >>/sys/kernel/mm/transparent_hugepage/enabled"},
	{"debugfs", "mount -t debugfs x /mnt"},
	{"tracefs", "mount -t tracefs x /mnt"},
	{"configfs", "mount -t configfs x /mnt"},
	{"securityfs", "mount -t securityfs x /mnt"},
	{"devtmpfs", "mount -t devtmpfs x /mnt"},
	{"a file system of one's own making", "dd if=/dev/zero of=/tmp/disk bs=1M count=1 2>/dev/null && losetup -f /tmp/disk"},
	{"a disk of the host", "mount -t ext4 /dev/vda /mnt || mount -t ext4 /dev/sda /mnt"},
	{"the kernel's log", "dmesg || dd if=/dev/kmsg bs=4096 count=1"},
	{"the kernel's memory", "dd if=/proc/kcore bs=1 count=1"},
	{"addresses in the kernel", "grep -v '^0000000000000000 ' /proc/kallsyms | grep -q ."},
	{"serial number of the hardware", "cat /sys/class/dmi/id/product_serial"},
	{"time of the host", `date -s "$(date)"`},
	{"swap", "dd if=/dev/zero of=/tmp/swap bs=1M count=1 2>/dev/null && swapon /tmp/swap"},
	{"to be killed last", "echo -1000 >/proc/self/oom_score_adj"},
	{"limit of groups", ": >>/sys/fs/cgroup/cgroup.max.descendants"},
	{"limit of groups in another mount", "mount -t cgroup2 x /mnt && : >>/mnt/cgroup.max.descendants"},
	{"processes of the host", "test -e /proc/1/root/usr/local/bin/nomad"},
	{"mounts of the host", "nsenter --target=1 --mount test -e /usr/local/bin/nomad"},
	{"logs, written", "touch /alloc/logs/x"},
	{"logs, mounted writable", "mount -o remount,bind,rw /alloc/logs && touch /alloc/logs/x"},
	{"logs, uncovered", "umount -l /alloc/logs && touch /alloc/logs/x"},
	{"logs, uncovered in a namespace in a namespace", "unshare -Urm sh -c 'umount -l /alloc/logs && touch /alloc/logs/x'"},
	{"logs, bound elsewhere", "mount --rbind /alloc /mnt && touch /mnt/logs/x"},
	{"logs, moved", "mount --move /alloc/logs /mnt"},
	{"logs, bound without what covers them", "mount --bind /alloc /mnt && touch /mnt/logs/x"},
	{"logs, renamed", "mv /alloc/logs /alloc/old"},
	{"logs, given away", "chown 0 /alloc/logs"},
	{"Nomad's private files", "ls /local/../private || ls /secrets/../private || ls /alloc/../main"},
	{"directory above the allocation's", "cd /alloc && ls ../../../nomad"},
	{"directory above, uncovered", "cd /local && umount -l /local && ls ../private"},
	{"the program that lets the command begin", "mount -o remount,bind,rw /run/nomad-driver-nspawn/shim && : >>/run/nomad-driver-nspawn/shim"},
	{"the program, written", ": >>/run/nomad-driver-nspawn/shim"},
	{"the gate", "touch /run/nomad-driver-nspawn/gate/x"},
}
