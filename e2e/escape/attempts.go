// Package escape records the attempts to get out of a container, or to harm others from
// inside a container, so that each version is tested against all of them. It contains only
// attempts that were actually run.
package escape

// Attempt is an attempt to escape or to do harm.
type Attempt struct {
	What    string
	Outcome Outcome
	// Tests are the names of the test functions that make the attempt. If there are none,
	// it was made by hand.
	Tests []string
	// Note says what the attempt needs, or who must do something about it.
	Note string
}

// Outcome is the result of an attempt against the present version.
type Outcome string

const (
	// Contained means that the attempt harms only the task itself.
	Contained Outcome = "contained"
	// Open means that the attempt harms others. README says which attempts these are and
	// what an operator can do.
	Open Outcome = "open"
)

// Attempts are the attempts that take more than one line. The others are in [Inside].
var Attempts = []Attempt{
	// What the container sees of the host.
	{"exchange the source of a bind for a link, and reboot the guest", Contained, []string{"testEscapeByReboot", "TestHostAttackRebootFollowsNothing"}, ""},
	{"exchange the source of a bind or a layer while another container starts", Contained, []string{"TestHostAttackExchangeAtStart"}, ""},
	{"rename directories that Nomad follows, by a descriptor passed from another container", Contained, []string{"TestHostAttackForeignDescriptor"}, ""},
	{"rename them after all mounts were detached, in a mount namespace of one's own", Contained, []string{"TestHostAttackDetachedMounts", "testEscapeByAgentStart"}, ""},
	{"links of the image and mounts that change what /alloc/logs is", Contained, []string{"testEscapeByLogs", "testEscapeByMount", "TestHostAttackLogsStayReadOnly", "TestHostAttackMountsInSharedDirectories"}, ""},
	{"have systemd-nspawn write behind links of the image", Contained, []string{"testEscapeByImage", "TestHostAttackLinksOfImage", "TestHostAttackLinksAtReboot"}, ""},
	{"have systemd-nspawn change what is mounted on the host, by `remount` or `bind` among the options of a tmpfs", Contained, []string{"TestHostAttackTmpfsChangesMounts", "TestTmpfsCheck"}, ""},
	{"settings of the host's systemd after a line feed in a value that goes into the unit's file", Contained, []string{"TestHostAttackUnitFile", "TestSpecCheck"}, ""},
	{"give an interface back whose alias is a path, for what is removed after a machine of that name", Contained, []string{"TestHostAttackOwnerOfLink"}, ""},
	{"parameters of the kernel: of the host, by paths and line feeds, that load modules, or that make the kernel answer for others in a group's network", Contained, []string{"testEscapeBySysctl", "TestHostSysctlFails"}, ""},
	{"a task whose name is a path", Contained, []string{"testEscapeByName"}, ""},
	{"one line from inside each: devices, sysctls, kernel file systems, logs, private files", Contained, []string{"testEscapeFromInside"}, ""},

	// What Nomad itself does, as root, in directories that containers write to.
	{"have Nomad write a token through a link in /secrets, at a restart", Contained, []string{"testEscapeByTokenAtStart", "TestHostAttackLinksInSecrets"}, ""},
	{"have Nomad renew a token through a link in /secrets", Contained, []string{"testEscapeByRenewal"}, "needs Linux 5.14"},
	{"have an agent that starts give a directory of the host to everybody", Contained, []string{"testEscapeByAgentStart"}, ""},
	{"have Nomad write what a job is dispatched with through a link, of another task or of a sticky disk", Contained, []string{"testEscapeByDispatch", "testEscapeByStickyDisk"}, "needs Linux 5.14"},
	{"exchange a directory for a link while Nomad shows what is in it (`nomad alloc fs`)", Contained, []string{"testEscapeByReading", "TestHostNoSymfollow"}, "needs Linux 5.14"},
	{"have Nomad write a token anywhere, by `filepath` of an identity", Open, []string{"testEscapeByFilepath"}, "of Nomad 1.11.3 with any driver: it does not check the path"},

	// What blocks or harms others.
	{"freeze a group, or trace or hold what the plugin waits for", Contained, []string{"testEscapeByFreezing", "TestHostFrozen", "TestHostFrozenPlace", "TestHostTraced", "TestHostWatchdog"}, ""},
	{"control groups without end, deeper than a path can be", Contained, []string{"TestHostGroupLimits", "TestHostRemoveGroup"}, ""},
	{"reboot for ever", Contained, []string{"TestHostRebootStorm"}, ""},
	{"READY=1 for ever", Contained, []string{"TestNotifyFlood"}, ""},
	{"a tarball that wants 4 GiB of memory to be unpacked", Contained, []string{"TestMemory", "TestDecompress"}, ""},
	{"a slow server for what others pull", Contained, []string{"TestSlowPullHoldsUpNobody", "TestSlowRegistryHoldsUpNobody"}, ""},
	{"archives with links, devices and paths that lead out", Contained, []string{"TestHostileArchives", "TestHostileLayouts", "TestHostileWhiteouts"}, ""},
	{"take a port of the host", Contained, []string{"testEscapeByPort", "testRefusedPort"}, "of 4646 to 4648, and of those that something listens on"},
	{"reach the host's loopback device and abstract sockets", Contained, []string{"testEscapeByNetwork"}, "by default: `allow_host_network`"},
	{"the terminal of an agent that was started at one", Contained, []string{"TestHostSession"}, ""},
	{"a setuid file in /local, for a user of the host", Open, nil, "mount the file systems of allocations and volumes `nosuid`"},
	{"all inotify instances of the host's root", Open, nil, "shown for a part of them: raise `fs.inotify.max_user_instances`"},
	{"name and machine ID of the host, from LLDP frames on host0", Open, nil, "`EmitLLDP=` of systemd-networkd"},
}
