package driver

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/image"
)

// Config is the plugin's configuration, in the agent's `plugin` block. What
// lets the author of a job out of a machine is off until it is turned on here.
type Config struct {
	Enabled               bool             `codec:"enabled"`
	AllowDiskImages       bool             `codec:"allow_disk_images"`
	AllowInPlace          bool             `codec:"allow_in_place"`
	AllowPrivileged       bool             `codec:"allow_privileged"`
	AllowUnverifiedImages bool             `codec:"allow_unverified_images"`
	DanglingMachines      DanglingMachines `codec:"dangling_machines"`
	DisableLogCollection  bool             `codec:"disable_log_collection"`
	ImageGC               ImageGC          `codec:"image_gc"`
	ImagePaths            []string         `codec:"image_paths"`
	ImagePullTimeout      string           `codec:"image_pull_timeout"`
	PullActivityTimeout   string           `codec:"pull_activity_timeout"`
	Registry              Registry         `codec:"registry"`
	Volumes               bool             `codec:"volumes"`
}

var configSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	"enabled":                 withDefault("enabled", "bool", "true"),
	"allow_disk_images":       withDefault("allow_disk_images", "bool", "false"),
	"allow_in_place":          withDefault("allow_in_place", "bool", "false"),
	"allow_privileged":        withDefault("allow_privileged", "bool", "false"),
	"allow_unverified_images": withDefault("allow_unverified_images", "bool", "false"),
	"dangling_machines":       danglingSpec,
	"disable_log_collection":  withDefault("disable_log_collection", "bool", "false"),
	"image_gc":                imageGCSpec,
	"image_paths":             withDefault("image_paths", "list(string)", `["/var/lib/machines"]`),
	"image_pull_timeout":      withDefault("image_pull_timeout", "string", `"15m"`),
	"pull_activity_timeout":   withDefault("pull_activity_timeout", "string", `"2m"`),
	"registry":                registrySpec,
	"volumes":                 withDefault("volumes", "bool", "false"),
})

// Validate reports every mistake at once.
func (c Config) Validate() error {
	errs := []error{
		c.DanglingMachines.validate(),
		c.ImageGC.validate(),
		c.Registry.validate(),
		positive("image_pull_timeout", c.ImagePullTimeout),
		positive("pull_activity_timeout", c.PullActivityTimeout),
	}
	for i, p := range c.ImagePaths {
		errs = append(errs, absolute(fmt.Sprintf("image_paths[%d]", i), p))
	}
	return errors.Join(errs...)
}

// TaskConfig is the `config` block of a task. A nil pointer is an option that
// is not set, where that differs from its zero value.
type TaskConfig struct {
	Args             []string          `codec:"args"`
	Auth             *Auth             `codec:"auth"`
	AuthSoftFail     bool              `codec:"auth_soft_fail"`
	Bind             map[string]string `codec:"bind"`
	BindReadOnly     map[string]string `codec:"bind_read_only"`
	Boot             *bool             `codec:"boot"`
	Capability       []string          `codec:"capability"`
	Command          any               `codec:"command"`
	Disk             *Disk             `codec:"disk"`
	Entrypoint       []string          `codec:"entrypoint"`
	Environment      map[string]string `codec:"environment"`
	Ephemeral        bool              `codec:"ephemeral"`
	ForwardJournal   bool              `codec:"forward_journal"`
	Hostname         string            `codec:"hostname"`
	Image            string            `codec:"image"`
	ImageDownload    *ImageDownload    `codec:"image_download"`
	ImagePolicy      string            `codec:"image_policy"`
	Inaccessible     []string          `codec:"inaccessible"`
	LinkJournal      string            `codec:"link_journal"`
	Logging          *Logging          `codec:"logging"`
	NetworkVeth      *bool             `codec:"network_veth"`
	NotifyReady      bool              `codec:"notify_ready"`
	Overlay          []string          `codec:"overlay"`
	OverlayReadOnly  []string          `codec:"overlay_read_only"`
	Ports            []string          `codec:"ports"`
	ProcessTwo       *bool             `codec:"process_two"`
	PullPolicy       string            `codec:"pull_policy"`
	ReadOnly         bool              `codec:"read_only"`
	ResolvConf       string            `codec:"resolv_conf"`
	Tmpfs            []string          `codec:"tmpfs"`
	User             string            `codec:"user"`
	UserNamespacing  bool              `codec:"user_namespacing"`
	Volatile         string            `codec:"volatile"`
	WorkingDirectory string            `codec:"working_directory"`
}

// Logging says where a task's output goes: to "nomad", or to the host's
// journal with "journald".
type Logging struct {
	Driver string `codec:"driver"`
}

var taskConfigSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	"args": hclspec.NewAttr("args", "list(string)", false),
	"auth": hclspec.NewBlock("auth", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"username": hclspec.NewAttr("username", "string", true),
		"password": hclspec.NewAttr("password", "string", true),
	})),
	"auth_soft_fail":  withDefault("auth_soft_fail", "bool", "false"),
	"bind":            hclspec.NewBlockAttrs("bind", "string", false),
	"bind_read_only":  hclspec.NewBlockAttrs("bind_read_only", "string", false),
	"boot":            hclspec.NewAttr("boot", "bool", false),
	"capability":      hclspec.NewAttr("capability", "list(string)", false),
	"command":         hclspec.NewAttr("command", "any", false),
	"disk":            diskSpec,
	"entrypoint":      hclspec.NewAttr("entrypoint", "list(string)", false),
	"environment":     hclspec.NewBlockAttrs("environment", "string", false),
	"ephemeral":       withDefault("ephemeral", "bool", "true"),
	"forward_journal": withDefault("forward_journal", "bool", "true"),
	"hostname":        hclspec.NewAttr("hostname", "string", false),
	"image":           hclspec.NewAttr("image", "string", true),
	"image_download": hclspec.NewBlock("image_download", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"force":  withDefault("force", "bool", "false"),
		"sha256": hclspec.NewAttr("sha256", "string", false),
		"type":   hclspec.NewAttr("type", "string", false),
		"url":    hclspec.NewAttr("url", "string", false),
		"verify": hclspec.NewAttr("verify", "string", false),
	})),
	"image_policy": hclspec.NewAttr("image_policy", "string", false),
	"inaccessible": hclspec.NewAttr("inaccessible", "list(string)", false),
	"link_journal": hclspec.NewAttr("link_journal", "string", false),
	"logging": hclspec.NewBlock("logging", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"driver": withDefault("driver", "string", `"nomad"`),
	})),
	"network_veth":      hclspec.NewAttr("network_veth", "bool", false),
	"notify_ready":      hclspec.NewAttr("notify_ready", "bool", false),
	"overlay":           hclspec.NewAttr("overlay", "list(string)", false),
	"overlay_read_only": hclspec.NewAttr("overlay_read_only", "list(string)", false),
	"ports":             hclspec.NewAttr("ports", "list(string)", false),
	"process_two":       hclspec.NewAttr("process_two", "bool", false),
	"pull_policy":       hclspec.NewAttr("pull_policy", "string", false),
	"read_only":         hclspec.NewAttr("read_only", "bool", false),
	"resolv_conf":       hclspec.NewAttr("resolv_conf", "string", false),
	"tmpfs":             hclspec.NewAttr("tmpfs", "list(string)", false),
	"user":              hclspec.NewAttr("user", "string", false),
	"user_namespacing":  withDefault("user_namespacing", "bool", "true"),
	"volatile":          hclspec.NewAttr("volatile", "string", false),
	"working_directory": hclspec.NewAttr("working_directory", "string", false),
})

func withDefault(name, kind, value string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, kind, false), hclspec.NewLiteral(value))
}

// The values that systemd-nspawn(1) lists for its options.
var (
	logDrivers   = []string{"nomad", "journald"}
	volatiles    = []string{"no", "yes", "state", "overlay"}
	linkJournals = []string{"no", "host", "try-host", "guest", "try-guest", "auto"}
	resolvConfs  = []string{
		"off", "copy-host", "copy-static", "copy-uplink", "copy-stub", "replace-host", "replace-static",
		"replace-uplink", "replace-stub", "bind-host", "bind-static", "bind-uplink", "bind-stub", "delete", "auto",
	}
	hostLabel  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$`)
	capability = regexp.MustCompile(`^(CAP_[A-Z_]+|all)$`)
)

// Validate reports every mistake that the block shows by itself, at once.
func (c TaskConfig) Validate() error {
	_, overlayErr := c.overlayOptions()
	errs := []error{
		required("image", c.Image),
		oneOf("link_journal", c.LinkJournal, linkJournals),
		oneOf("pull_policy", c.PullPolicy, image.Policies),
		oneOf("resolv_conf", c.ResolvConf, resolvConfs),
		oneOf("volatile", c.Volatile, volatiles),
		c.validateImage(),
		c.validateDisk(),
		absolute("working_directory", c.WorkingDirectory),
		matches("hostname", c.Hostname, hostLabel, "a host name of letters, digits, - and ."),
		c.validateCommand(),
		validateBinds("bind", c.Bind),
		validateBinds("bind_read_only", c.BindReadOnly),
		overlayErr,
	}
	if c.Logging != nil {
		errs = append(errs, oneOf("logging.driver", c.Logging.Driver, logDrivers))
	}
	if len(c.Hostname) > maxHostname {
		errs = append(errs, fmt.Errorf("hostname: %q is longer than %d characters", c.Hostname, maxHostname))
	}
	for i, mount := range c.Tmpfs {
		path, _, _ := strings.Cut(mount, ":")
		errs = append(errs, required(fmt.Sprintf("tmpfs[%d]", i), path), absolute(fmt.Sprintf("tmpfs[%d]", i), path))
	}
	for i, path := range c.Inaccessible {
		errs = append(errs, required(fmt.Sprintf("inaccessible[%d]", i), path), absolute(fmt.Sprintf("inaccessible[%d]", i), path))
	}
	for i, name := range c.Capability {
		errs = append(errs, matches(fmt.Sprintf("capability[%d]", i), name, capability, "a name of capabilities(7), as CAP_NET_ADMIN, or all"))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		if !nspawn.ValidEnvironmentName(name) {
			errs = append(errs, fmt.Errorf("environment: %q is not a name that systemd passes on: use letters, digits and _", name))
		}
	}
	return errors.Join(errs...)
}

const maxHostname = 64 // HOST_NAME_MAX, see gethostname(2)

func (c TaskConfig) validateCommand() error {
	command, isList, err := words(c.Command)
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(unless bool, format string, values ...any) {
		if !unless {
			errs = append(errs, fmt.Errorf(format, values...))
		}
	}
	refuse(len(c.Args) == 0 || len(command) > 0 || c.imageKind() == ociImage, "args: there is no command to give them to")
	refuse(len(c.Args) == 0 || !isList, "args: put them into the list of command, or make command a string")
	if c.mode() == nspawn.Boot {
		refuse(c.ProcessTwo == nil || !*c.ProcessTwo, "process_two: cannot be combined with boot")
		refuse(c.User == "", "user: cannot be combined with boot: the image's init is started as root")
		refuse(c.WorkingDirectory == "", "working_directory: cannot be combined with boot")
		refuse(len(command) == 0 || initArguments(command), "command: with boot these are arguments for the image's init, which %q is not: set boot = false to run it", first(command))
	} else {
		refuse(len(command) > 0 && command[0] != "" || len(command) == 0 && c.imageKind() == ociImage, "command: is required without boot")
	}
	return errors.Join(errs...)
}

// mode is what the machine's PID 1 is. An image without a command is booted,
// unless it says itself what is run, as those of registries do.
func (c TaskConfig) mode() nspawn.Mode {
	command, _, _ := words(c.Command)
	boot := initArguments(command) && (len(command) > 0 || c.imageKind() != ociImage)
	if c.Boot != nil {
		boot = *c.Boot
	}
	switch {
	case boot:
		return nspawn.Boot
	case c.ProcessTwo != nil && !*c.ProcessTwo:
		return nspawn.ProcessOne
	}
	return nspawn.ProcessTwo
}

func validateBinds(option string, binds map[string]string) error {
	var errs []error
	for _, source := range slices.Sorted(maps.Keys(binds)) {
		at := fmt.Sprintf("%s[%q]", option, source)
		errs = append(errs, required(at, source), required(at, binds[source]), absolute(at, binds[source]))
	}
	return errors.Join(errs...)
}

func required(at, value string) error {
	if value == "" {
		return fmt.Errorf("%s: must not be empty", at)
	}
	return nil
}

func absolute(at, value string) error {
	if value != "" && !path.IsAbs(value) {
		return fmt.Errorf("%s: %q is not an absolute path", at, value)
	}
	return nil
}

func oneOf(at, value string, values []string) error {
	if value != "" && !slices.Contains(values, value) {
		return fmt.Errorf("%s: %q is not one of %s", at, value, strings.Join(values, ", "))
	}
	return nil
}

func matches(at, value string, pattern *regexp.Regexp, want string) error {
	if value != "" && !pattern.MatchString(value) {
		return fmt.Errorf("%s: %q is not %s", at, value, want)
	}
	return nil
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
