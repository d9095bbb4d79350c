package job

import (
	"cmp"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
	"nomad-driver-nspawn/nspawn/systemd"
)

// checker reads what a job has become as systemd-nspawn and systemd read it, by code of
// its own, and wants nothing in there that the job may not have.
type checker struct {
	t    *testing.T
	s    *situation
	task *TaskConfig
	spec *machine.Spec
	host *machine.Host
	own  []machine.Bind // that Nomad gives to each task
	argv []string
	seen map[string]int // how often an option of nspawn is there
}

func (c *checker) unless(holds bool, format string, values ...any) {
	if !holds {
		c.t.Helper()
		c.t.Errorf(format, values...)
		c.t.Fatalf("of %q", c.argv)
	}
}

func (c *checker) check(properties []systemd.Property) {
	c.checkArguments()
	c.checkCounts()
	c.checkSources()
	c.checkPayload()
	c.checkSysctls()
	c.checkProperties(properties)
	if c.s.policy.closed {
		c.checkClosed(properties)
	}
}

// plain are arguments with which no text of a job is mixed.
var plain = map[string]bool{
	"--quiet": true, "--keep-unit": true, "--settings=no": true, "--timezone=off": true, "--kill-signal=SIGRTMIN+3": true, "--as-pid2": true,
	"--console=read-only": true, "--console=pipe": true, "--register=yes": true, "--register=no": true, "--private-users=no": true,
	"--private-users-ownership=off": true, "--private-users-ownership=map": true, "--no-new-privileges=yes": true, "--link-journal=no": true,
	"--notify-ready=yes": true, "--read-only": true, "--restrict-address-families=": true, "--network-veth": true, "--private-network": true,
	"--setenv=" + inside.OneCPU: true, "--private-users=65536000:65536": true,
}

// valued are the options with a value of the job's, and what the value looks like, if it
// is of few characters.
var valued = map[string]*regexp.Regexp{
	"--machine": regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]{0,63}$`),
	"--uuid":    regexp.MustCompile(`^[0-9a-f-]{36}$`),
	// hostname_is_valid in systemd's hostname-util.c, with 64 characters at most
	"--hostname":           regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*$`),
	"--capability":         regexp.MustCompile(`^(all|CAP_[A-Z_]+)(,(all|CAP_[A-Z_]+))*$`),
	"--drop-capability":    regexp.MustCompile(`^CAP_[A-Z_]+(,CAP_[A-Z_]+)*$`),
	"--system-call-filter": regexp.MustCompile(`^~?@?[a-z0-9_-]+$`),
	"--rlimit":             regexp.MustCompile(`^RLIMIT_[A-Z]+=([0-9]+|infinity):([0-9]+|infinity)$`),
	"--resolv-conf":        regexp.MustCompile(`^(off|auto|delete|(copy|replace|bind)-(host|static|uplink|stub))$`),
	"--volatile":           regexp.MustCompile(`^(no|yes|state|overlay)$`),
	"--network-zone":       regexp.MustCompile(`^[a-zA-Z0-9_-]{1,12}$`),
	"--network-bridge":     interfaces, "--network-macvlan": interfaces, "--network-ipvlan": interfaces, "--network-interface": interfaces, "--network-veth-extra": interfaces,
	"--load-credential": nil, "--directory": nil, "--tmpfs": nil, "--inaccessible": nil, "--bind": nil, "--bind-ro": nil,
}

var interfaces = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,14}(:[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,14})?$`)

// checkArguments takes each argument for the option that it is to nspawn's getopt_long:
// what comes before the first "=" is its whole name, and its value is in the same word.
func (c *checker) checkArguments() {
	start := slices.Index(c.argv, "systemd-nspawn")
	end := len(c.argv) - 3
	c.unless(start == len(c.host.Launcher) && slices.Equal(c.argv[:start], c.host.Launcher), "the launcher is another")
	c.unless(slices.Equal(c.argv[end:], []string{"--", inside.ShimPath, inside.GateArg}), "another command than the shim")
	c.seen = map[string]int{}
	for _, arg := range c.argv[start+1 : end] {
		if plain[arg] {
			c.seen[arg]++
			continue
		}
		c.unless(isText(arg), "%q is not a line of text", arg)
		option, value, _ := strings.Cut(arg, "=")
		c.seen[option]++
		form, known := valued[option]
		c.unless(known && (form == nil || form.MatchString(value)), "%q is no option that is meant, with such a value", arg)
		c.checkValue(option, value)
	}
	for option, n := range c.seen {
		c.unless(n == 1 || slices.Contains(repeatable, option), "%s is there %d times", option, n)
	}
}

var repeatable = []string{
	"--system-call-filter", "--rlimit", "--load-credential", "--tmpfs", "--inaccessible", "--bind", "--bind-ro", "--network-veth-extra",
}

func (c *checker) checkValue(option, value string) {
	mounts := "/run/nomad-driver-nspawn/machines/" + c.spec.Machine + "/"
	switch option {
	case "--hostname":
		c.unless(len(value) <= 64, "%q is longer than a host name", value)
	case "--directory":
		c.unless(value == mounts+"mounts/root", "%q is not the prepared root", value)
	case "--load-credential":
		name, file, _ := strings.Cut(value, ":")
		c.unless(credentialName.MatchString(name) && file == mounts+"credentials/"+name, "%q is not a credential of the machine", value)
	case "--inaccessible":
		c.unless(isPlaceInside(value), "%q is no place in the machine", value)
	case "--tmpfs":
		name, options, _ := splitFirst(value)
		c.unless(isPlaceInside(name), "%q is no place in the machine", name)
		for option := range strings.SplitSeq(options, ",") {
			c.unless(memoryOption.MatchString(option), "%q is no option of a file system in memory", option)
		}
	case "--bind", "--bind-ro":
		source, rest, _ := splitFirst(value)
		destination, _, more := splitFirst(rest)
		c.unless(!more, "%q has options", value)
		c.unless(isPlaceInside(destination), "%q is no place in the machine", destination)
		c.unless(preparedMount.MatchString(strings.TrimPrefix(source, mounts+"mounts/")), "%q is not a prepared mount", source)
	}
}

var (
	memoryOption  = regexp.MustCompile(`^((size|nr_blocks|nr_inodes)=[0-9]+[kKmMgGtT%]?|mode=[0-7]{1,4}|[ug]id=[0-9]+|ro|rw|async|sync|(no)?atime|(no)?diratime|(no)?exec|nosuid|suid|nodev|(no)?relatime|(no)?strictatime|noswap)$`)
	preparedMount = regexp.MustCompile(`^(gate|shim|(binds|overlays|memories|devices)/[0-9]+|names/(hosts|resolv\.conf))$`)
)

// isPlaceInside wants a path at which nspawn can mount something that is not the root.
func isPlaceInside(name string) bool {
	return path.IsAbs(name) && path.Clean(name) != "/" && isText(name)
}

// splitFirst splits at the first colon as systemd does (extract_first_word without
// flags): a backslash takes the next character as it is. The rest is not unescaped.
func splitFirst(value string) (first, rest string, more bool) {
	var word []byte
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] == '\\' && i+1 < len(value):
			i++
		case value[i] == ':':
			return string(word), value[i+1:], true
		}
		word = append(word, value[i])
	}
	return string(word), "", false
}

// checkCounts wants as many of an option as the job has asked for.
func (c *checker) checkCounts() {
	shm := 0
	if c.task.ShmSize > 0 {
		shm = 1
	}
	volumes := len(c.s.image.Config.Volumes)
	binds := len(c.own) + len(c.s.cfg.Mounts) + len(c.s.cfg.Devices) + len(c.task.Bind) + len(c.task.BindReadOnly) + len(c.task.Volumes) +
		len(c.task.Mount) + len(c.task.Overlay) + len(c.task.OverlayReadOnly) + len(c.task.Devices) + len(c.task.Tmpfs) + volumes
	const ours = 4 // shim, gate, hosts and resolv.conf
	c.unless(c.seen["--bind"]+c.seen["--bind-ro"] <= binds+ours, "more binds than the job asks for")
	c.unless(c.seen["--tmpfs"] <= len(c.task.Tmpfs)+len(c.task.Mount)+shm, "more file systems in memory than the job asks for")
	for option, want := range map[string]int{
		"--inaccessible": len(c.task.Inaccessible), "--rlimit": len(c.task.Ulimit), "--system-call-filter": len(c.task.SystemCallFilter),
		"--load-credential": len(c.task.LoadCredential) + len(c.task.SetCredential), "--network-veth-extra": len(c.task.NetworkVethExtra),
	} {
		c.unless(c.seen[option] == want, "%d of %s, not %d", c.seen[option], option, want)
	}
}

// checkSources wants every path of the host that is opened for the machine to be one that
// Nomad gives, one below the task's own directory, or one that the operator allows, for
// which it is asked again when its links are known.
func (c *checker) checkSources() {
	given := func(name string) bool {
		return name == "/opt/volume" || slices.ContainsFunc(c.own, func(bind machine.Bind) bool { return bind.Source == name })
	}
	allowed := func(name string) bool {
		switch {
		case name != filepath.Clean(name) || !filepath.IsAbs(name):
			return false
		case given(name), paths.Within(c.s.cfg.TaskDir().Dir, name):
			return true
		}
		return !c.s.policy.closed && paths.Within("/srv/open", name) && slices.Contains(c.task.HostPaths(), name)
	}
	for _, bind := range c.spec.Binds {
		c.unless(allowed(bind.Source), "%q is bound, which nobody has allowed", bind.Source)
	}
	for _, overlay := range c.spec.Overlays {
		for _, layer := range overlay.Lower {
			c.unless(layer.InRoot && filepath.IsAbs(layer.Path) || allowed(layer.Path), "%q is a layer, which nobody has allowed", layer.Path)
		}
		c.unless(overlay.Upper == "" || allowed(overlay.Upper), "%q is an upper layer, which nobody has allowed", overlay.Upper)
	}
}

// checkPayload wants that the instructions arrive as they are: they are JSON on their
// way, and then arguments of execve(2).
func (c *checker) checkPayload() {
	todo := c.spec.Instructions()
	for _, text := range slices.Concat(todo.Argv, todo.Env, []string{todo.Dir, todo.User}) {
		c.unless(isPassable(text), "%q cannot be handed over", text)
	}
	c.unless(!todo.Init || cmp.Or(todo.User, todo.Dir) == "", "a guest has user %q and directory %q", todo.User, todo.Dir)
}

// checkSysctls wants parameters of namespaces that the machine has of its own, and no others
// than the job has named.
func (c *checker) checkSysctls() {
	hasOwn := c.seen["--network-veth"]+c.seen["--private-network"]+c.seen["--network-zone"] > 0 || !c.s.policy.closed
	for name, value := range c.spec.Sysctls {
		c.unless(value == c.task.Sysctl[name] && isText(value) && ownSysctl.MatchString(name), "sysctl %q = %q", name, value)
		c.unless(hasOwn || c.s.cfg.NetworkIsolation != nil || !strings.HasPrefix(name, "net."), "sysctl %q of the host", name)
		c.unless(!strings.Contains(name, "forward") || hasOwn && !c.s.policy.closed, "sysctl %q, which the operator has not allowed", name)
	}
}

var ownSysctl = regexp.MustCompile(`^(net(\.[a-zA-Z0-9_-]+)+|kernel\.(msg|sem|shm)[a-z_]*|fs\.mqueue\.[a-z_]+)$`)
