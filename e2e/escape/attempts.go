// Package escape keeps what has been tried to get out of a container, or to harm others
// from inside of one: so that it is tried again with each version, and not thought of
// anew. Only what somebody has run is here.
package escape

// Attempt is one of them.
type Attempt struct {
	What    string
	Outcome Outcome
	// Tests run it, by the names of their functions. Without any, it was run by hand.
	Tests []string
	// Note says more: what it takes, or who has to do something about it.
	Note string
}

// Outcome is what came of an attempt in the present version.
type Outcome string

const (
	// Contained harms nobody but the task itself.
	Contained Outcome = "contained"
	// Open harms others. README says of which kind it is and what an operator can do.
	Open Outcome = "open"
)

// Attempts are those that are more than a line; for these see [Inside].
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
	{"a task whose name is a path", Contained, []string{"testEscapeByName"}, ""},
	{"one line from inside each: devices, sysctls, kernel file systems, logs, private files", Contained, []string{"testEscapeFromInside"}, ""},

	// What Nomad itself, root, does in directories that containers write to.
	{"have Nomad write a token through a link in /secrets, at a restart", Contained, []string{"testEscapeByTokenAtStart", "TestHostAttackLinksInSecrets"}, ""},
	{"have Nomad renew a token through a link in /secrets", Contained, []string{"testEscapeByRenewal"}, "needs Linux 5.14"},
	{"have an agent that starts give a directory of the host to everybody", Contained, []string{"testEscapeByAgentStart"}, ""},
	{"have Nomad write what a job is dispatched with through a link, of another task or of a sticky disk", Contained, []string{"testEscapeByDispatch", "testEscapeByStickyDisk"}, "needs Linux 5.14"},
	{"exchange a directory for a link while Nomad shows what is in it (`nomad alloc fs`)", Contained, []string{"testEscapeByReading", "TestHostNoSymfollow"}, "needs Linux 5.14"},
	{"have Nomad write a token anywhere, by `filepath` of an identity", Open, []string{"testEscapeByFilepath"}, "of Nomad 1.11.3 with any driver: it does not check the path"},

	// What holds up or harms others.
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
