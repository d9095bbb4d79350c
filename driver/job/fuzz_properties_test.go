package job

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/systemd"
)

// isPassable reports whether a text can be a string of D-Bus, of JSON and of execve(2).
func isPassable(text string) bool { return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 }

// isText reports whether a text means the same in a line of a file.
func isText(text string) bool {
	return isPassable(text) && strings.IndexFunc(text, unicode.IsControl) < 0
}

// knownProperties are all that a unit may have.
var knownProperties = regexp.MustCompile(`^(Description|Slice|Type|NotifyAccess|Standard(Input|Output|Error)|RemainAfterExit|Delegate|KillMode|TimeoutStopUSec|ExecStart(Ex)?|OOMPolicy|` +
	`RestartForceExitStatus|StartLimitIntervalUSec|StartLimitBurst|Environment|DevicePolicy|DeviceAllow|TasksMax|Memory(Max|SwapMax|Low)|CPUWeight|AllowedCPUs|` +
	`OOMScoreAdjust|CPUQuotaPe(rSec|riod)USec|Limit(AS|CORE|CPU|DATA|FSIZE|LOCKS|MEMLOCK|MSGQUEUE|NICE|NOFILE|NPROC|RSS|RTPRIO|RTTIME|SIGPENDING|STACK)|` +
	`IOWeight|IO(Read|Write)(Bandwidth|IOPS)Max|LogExtraFields|SyslogIdentifier|NetworkNamespacePath)$`)

func (c *checker) checkProperties(properties []systemd.Property) {
	seen := map[string]bool{}
	for _, p := range properties {
		known, ok := isKnown[p.Name]
		if !ok {
			known = knownProperties.MatchString(p.Name)
			if len(isKnown) < 256 {
				isKnown[p.Name] = known
			}
		}
		c.unless(known, "the unit has a property %q", p.Name)
		c.unless(!seen[p.Name], "the unit has the property %s twice", p.Name)
		seen[p.Name] = true
		c.checkProperty(p.Name, p.Value.Value())
	}
	c.unless(seen["ExecStart"] != seen["ExecStartEx"], "the unit has two commands, or none")
}

// isKnown remembers what knownProperties has answered.
var isKnown = map[string]bool{}

func (c *checker) checkProperty(name string, value any) {
	switch {
	case name == "ExecStart" || name == "ExecStartEx":
		command := reflect.ValueOf(value)
		c.unless(command.Len() == 1 && slices.Equal(command.Index(0).FieldByName("Args").Interface().([]string), c.argv), "the unit runs something else")
	case name == "LogExtraFields":
		for _, field := range value.([][]byte) {
			name, _, ok := strings.Cut(string(field), "=")
			c.unless(ok && journalName.MatchString(name), "%q is no field of the journal", field)
		}
	case name == "Environment":
		c.unless(slices.Equal(value.([]string)[:3], []string{"NOTIFY_SOCKET=" + c.host.Notify, "SYSTEMD_LOG_TARGET=journal", "GOMAXPROCS=1"}), "environment of nspawn: %q", value)
		for _, variable := range value.([]string)[3:] {
			c.unless(variable == "SYSTEMD_NSPAWN_TMPFS_TMP=0" || variable == "SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes", "environment of nspawn: %q", value)
		}
	case name == "DeviceAllow" || strings.HasPrefix(name, "IO"):
		c.checkDevices(name, reflect.ValueOf(value))
	default:
		text, isString := value.(string)
		c.unless(!isString || isText(text), "%s is %q", name, value)
	}
}

var (
	journalName    = regexp.MustCompile(`^NOMAD_[A-Z_]+$`)
	plainDevice    = regexp.MustCompile(`^(/|(/[A-Za-z0-9_.:,+@=~-]+)+|char-pts)$`)
	accessOfDevice = regexp.MustCompile(`^[rwm]{1,3}$`)
)

func (c *checker) checkDevices(name string, list reflect.Value) {
	if list.Kind() != reflect.Slice {
		return // IOWeight
	}
	for i := range list.Len() {
		for j := range list.Index(i).NumField() {
			field := list.Index(i).Field(j)
			switch {
			case field.Kind() != reflect.String:
			case j == 0:
				c.unless(plainDevice.MatchString(field.String()), "%s names %q", name, field)
			default:
				c.unless(accessOfDevice.MatchString(field.String()), "%s has access %q", name, field)
			}
		}
	}
}

// checkClosed wants nothing of what an operator would have to allow.
func (c *checker) checkClosed(properties []systemd.Property) {
	zone := 0
	if c.spec.Network.Kind == links.Zone && slices.Contains(c.argv, "--network-bridge="+links.ZoneBridge(c.spec.Network.Of)) {
		zone = 1
	}
	for _, option := range []string{
		"--private-users=no", "--network-macvlan", "--network-ipvlan", "--network-interface", "--network-veth-extra",
	} {
		c.unless(c.seen[option] == 0, "%s, which the operator has not allowed", option)
	}
	c.unless(c.seen["--network-bridge"] == zone, "a bridge that is not a zone's, which the operator has not allowed")
	own := c.seen["--network-veth"] + c.seen["--private-network"] + zone
	c.unless(own == 1 || own == 0 && c.s.cfg.NetworkIsolation != nil, "the network is not one of its own")
	c.unless(!c.spec.Root.InPlace || c.seen["--read-only"] == 1, "the job may change the image")
	for _, arg := range c.argv {
		call, ok := strings.CutPrefix(arg, "--system-call-filter=")
		c.unless(!ok || call[0] == '~', "%s, which the operator has not allowed", arg)
	}
	for _, p := range properties {
		c.unless(isClosed(p.Name, p.Value.Value(), len(c.s.cfg.Devices)), "%s is %v, which the operator has not allowed", p.Name, p.Value)
	}
}

func isClosed(name string, value any, devices int) bool {
	switch name {
	case "DevicePolicy":
		return value == "closed"
	case "DeviceAllow":
		return reflect.ValueOf(value).Len() == 3+devices
	case "Environment":
		return !slices.Contains(value.([]string), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes")
	case "StandardOutput", "StandardError", "SyslogIdentifier":
		return false
	case "OOMScoreAdjust":
		return value.(int32) >= 0
	case "TasksMax":
		return value.(uint64) > 0 && value.(uint64) <= 16384
	case "NetworkNamespacePath":
		return value == "/run/netns/x"
	}
	return true
}
