package job

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/nomad/drivers/shared/capabilities"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// policyOptions are what the operator allows jobs, in the plugin's config for all
// of them, and in a `namespace` block for those of a Nomad namespace. Nil is an
// option that a block does not set.
type policyOptions struct {
	AllowCaps              []string `codec:"allow_caps"`
	AllowDevices           []string `codec:"allow_devices"`
	AllowDiskImages        *bool    `codec:"allow_disk_images"`
	AllowHostNetwork       *bool    `codec:"allow_host_network"`
	AllowInPlace           *bool    `codec:"allow_in_place"`
	AllowJournaldLogging   *bool    `codec:"allow_journald_logging"`
	AllowNetworkBridges    []string `codec:"allow_network_bridges"`
	AllowNetworkInterfaces []string `codec:"allow_network_interfaces"`
	AllowNetworkZones      []string `codec:"allow_network_zones"`
	AllowPrivileged        *bool    `codec:"allow_privileged"`
	AllowUnverifiedImages  *bool    `codec:"allow_unverified_images"`
	AllowedImages          []string `codec:"allowed_images"`
	DiskDefault            *string  `codec:"disk_default"`
	DiskMax                *string  `codec:"disk_max"`
	ImagePaths             []string `codec:"image_paths"`
	NoNewPrivileges        *bool    `codec:"no_new_privileges"`
	PidsLimit              *int64   `codec:"pids_limit"`
	RequireUserNamespaces  *bool    `codec:"require_user_namespaces"`
	VolumePaths            []string `codec:"volume_paths"`
	Volumes                *bool    `codec:"volumes"`
}

// defaultPolicy allows a job nothing that reaches out of its machine. In a user
// namespace, capabilities do not, so all of them are allowed.
func defaultPolicy() policyOptions {
	return policyOptions{
		AllowCaps:             []string{"all"},
		AllowDiskImages:       new(bool),
		AllowHostNetwork:      new(bool),
		AllowInPlace:          new(bool),
		AllowJournaldLogging:  new(bool),
		AllowNetworkZones:     []string{"*"},
		AllowPrivileged:       new(bool),
		AllowUnverifiedImages: new(bool),
		NoNewPrivileges:       new(bool),
		ImagePaths:            []string{"/var/lib/machines"},
		PidsLimit:             ptr(int64(maxPids)),
		RequireUserNamespaces: new(bool),
		VolumePaths:           []string{"/"},
		Volumes:               new(bool),
	}
}

func ptr[T any](value T) *T { return &value }

var policySchema = func() options {
	all := policyRules(true)
	all["namespace"] = hclspec.NewBlockMap("namespace", []string{"name"}, hclspec.NewObject(policyRules(false)))
	return all
}()

// policyRules are the schemas of policyOptions, with the defaults or without.
func policyRules(defaults bool) options {
	d := defaultPolicy()
	rules := options{
		"allow_devices":            attr("allow_devices", "list(string)"),
		"allow_network_bridges":    attr("allow_network_bridges", "list(string)"),
		"allow_network_interfaces": attr("allow_network_interfaces", "list(string)"),
		"allowed_images":           attr("allowed_images", "list(string)"),
		"disk_default":             attr("disk_default", "string"),
		"disk_max":                 attr("disk_max", "string"),
	}
	for _, rule := range []struct {
		name, kind string
		value      any
	}{
		{"allow_caps", "list(string)", d.AllowCaps},
		{"allow_disk_images", "bool", d.AllowDiskImages},
		{"allow_host_network", "bool", d.AllowHostNetwork},
		{"allow_in_place", "bool", d.AllowInPlace},
		{"allow_journald_logging", "bool", d.AllowJournaldLogging},
		{"allow_network_zones", "list(string)", d.AllowNetworkZones},
		{"allow_privileged", "bool", d.AllowPrivileged},
		{"allow_unverified_images", "bool", d.AllowUnverifiedImages},
		{"image_paths", "list(string)", d.ImagePaths},
		{"no_new_privileges", "bool", d.NoNewPrivileges},
		{"pids_limit", "number", d.PidsLimit},
		{"require_user_namespaces", "bool", d.RequireUserNamespaces},
		{"volume_paths", "list(string)", d.VolumePaths},
		{"volumes", "bool", d.Volumes},
	} {
		rules[rule.name] = attr(rule.name, rule.kind)
		if defaults {
			rules[rule.name] = withDefault(rule.name, rule.kind, rule.value)
		}
	}
	return rules
}

// namespaceName is how Nomad names namespaces (nomad/structs, validNamespaceName).
var namespaceName = regexp.MustCompile(`^[a-zA-Z0-9-]{1,128}$`)

func (c Config) validatePolicy() error {
	found := c.policyOptions.mistakes("")
	for _, name := range slices.Sorted(maps.Keys(c.Namespaces)) {
		at := fmt.Sprintf("namespace %q: ", name)
		found.add(prefixed(at, matches("name", name, namespaceName, "a name of letters, digits and -")))
		found.add(c.Namespaces[name].mistakes(at)...)
	}
	return found.err()
}

// mistakes returns what a block shows by itself, each with the block's name before it.
func (p policyOptions) mistakes(block string) mistakes {
	var found mistakes
	for i, dir := range p.ImagePaths {
		found.add(required(at("image_paths", i), dir), absolute(at("image_paths", i), dir))
	}
	for i, dir := range p.VolumePaths {
		found.add(required(at("volume_paths", i), dir), absolute(at("volume_paths", i), dir))
	}
	for i, image := range p.AllowedImages {
		found.add(prefixed(at("allowed_images", i)+": ", checkAllowedImage(image)))
	}
	for i, pattern := range p.AllowDevices {
		found.add(checkPattern(at("allow_devices", i), pattern), absolute(at("allow_devices", i), pattern))
	}
	found.add(p.networkMistakes()...)
	unknown := capabilities.Supported().Difference(capabilities.New(p.AllowCaps))
	found.unless(unknown.Empty(), "allow_caps: %s: the kernel has no such capabilities, see capabilities(7); all stands for all", unknown)
	for _, option := range []struct {
		name  string
		value *string
	}{{"disk_default", p.DiskDefault}, {"disk_max", p.DiskMax}} {
		if option.value != nil && *option.value != "" {
			found.add(checkDisk(option.name, *option.value))
		}
	}
	found.unless(p.PidsLimit == nil || *p.PidsLimit >= minPids, "pids_limit: want %d or more", minPids)
	for i, err := range found {
		found[i] = prefixed(block, err)
	}
	return found
}

// Policy is what the operator allows the jobs of a namespace. Its methods answer
// with the error that the job's author reads, or with nil.
type Policy struct {
	rules policyOptions
	// LogCollection says that Nomad collects the output of tasks.
	LogCollection bool
}

// Policy returns what the operator allows the jobs of a Nomad namespace. What the
// block of the namespace does not set is as for all others.
func (c Config) Policy(namespace string) Policy {
	return Policy{rules: c.Namespaces[namespace].over(c.policyOptions), LogCollection: !c.DisableLogCollection}
}

// over returns the options, and those of another block where they are not set.
func (p policyOptions) over(other policyOptions) policyOptions {
	fields, others := reflect.ValueOf(&p).Elem(), reflect.ValueOf(other)
	for i := range fields.NumField() {
		if fields.Field(i).IsNil() {
			fields.Field(i).Set(others.Field(i))
		}
	}
	return p
}

// refusal is what is not allowed unless an option of the operator is true.
type refusal struct {
	what   string
	it     string // the word for it; "it" if empty
	option string
	or     string // another way out, if there is one
}

// unless returns the error if the operator has not allowed it.
func (r refusal) unless(allowed *bool) error {
	if isOn(allowed) {
		return nil
	}
	if r.it == "" {
		r.it = "it"
	}
	if r.or != "" {
		r.or = ", or " + r.or
	}
	return fmt.Errorf("%s; the operator has to allow %s with %s = true in the plugin's config%s", r.what, r.it, r.option, r.or)
}

func isOn(option *bool) bool { return option != nil && *option }

// DiskImage answers for a disk image of the web or of the task's directory.
// Kernel file system drivers do not expect malicious images, and crafted ones
// have exploited them before.
func (p Policy) DiskImage() error {
	return refusal{
		what:   "image: a disk image of the web or of the task's directory has the kernel read a file system that anybody may have made",
		option: "allow_disk_images",
		or:     "put the image below image_paths",
	}.unless(p.rules.AllowDiskImages)
}

// UnverifiedImage answers for a download that nothing verifies.
func (p Policy) UnverifiedImage() error {
	return refusal{
		what:   `image_download.verify: "no" takes whatever comes`,
		option: "allow_unverified_images",
		or:     "the job give sha256",
	}.unless(p.rules.AllowUnverifiedImages)
}

// InPlace answers for an image that the task may change.
func (p Policy) InPlace() error {
	return refusal{what: "ephemeral: false lets the job change the image that others start from", option: "allow_in_place"}.unless(p.rules.AllowInPlace)
}

// HostUsers answers for a machine without a user namespace.
func (p Policy) HostUsers() error {
	if isOn(p.rules.RequireUserNamespaces) {
		return errors.New("user_namespacing: false is not allowed: the operator has set require_user_namespaces = true in the plugin's config")
	}
	return refusal{what: "user_namespacing: false makes the machine's root the host's root", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// JournaldLogging answers for a job that sends its output to the host's journal.
// The journal has one limit for all, so older entries go for new ones.
func (p Policy) JournaldLogging() error {
	if !p.LogCollection {
		return nil // the operator sends all output there
	}
	return refusal{
		what:   `logging.driver: "journald" lets the job push older entries out of the host's journal`,
		option: "allow_journald_logging",
	}.unless(p.rules.AllowJournaldLogging)
}

// Volumes reports whether paths of the host are allowed at all.
func (p Policy) Volumes() bool { return isOn(p.rules.Volumes) }

// HostPath answers for a path of the host as the job names it, which must be
// below one of the operator's directories. The function reports whether the path
// is in a directory.
func (p Policy) HostPath(name string, below func(dir string) bool) error {
	if !p.Volumes() {
		return refusal{
			what:   "paths of the host are not allowed",
			it:     "them",
			option: "volumes",
			or:     "the path be relative to the task's directory",
		}.unless(p.rules.Volumes)
	}
	return belowOne("volume_paths", p.rules.VolumePaths, name, below)
}

func belowOne(option string, dirs []string, name string, below func(dir string) bool) error {
	if slices.ContainsFunc(dirs, below) {
		return nil
	}
	return fmt.Errorf("%q is not below a directory that the operator allows with %s in the plugin's config (%s)", name, option, listed(dirs))
}

// listed shows a list of the operator.
func listed(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// NoNewPrivileges reports whether no task may get more rights by set-user-ID programs.
func (p Policy) NoNewPrivileges() bool { return isOn(p.rules.NoNewPrivileges) }

// Privileged answers for a machine that is not confined.
func (p Policy) Privileged() error {
	if isOn(p.rules.RequireUserNamespaces) {
		return errors.New("privileged: true is not allowed: the operator has set require_user_namespaces = true in the plugin's config")
	}
	return refusal{what: "privileged: true gives the task the host's root and all of its devices", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// SystemCall answers for a system call that systemd-nspawn forbids.
func (p Policy) SystemCall(name string) error {
	return refusal{
		what:   fmt.Sprintf("system_call_filter: %s allows what systemd-nspawn forbids", name),
		option: "allow_privileged",
		or:     "the job forbid more, as ~" + name,
	}.unless(p.rules.AllowPrivileged)
}

// OOMScore answers for a task that the kernel is to spare when memory is short.
func (p Policy) OOMScore() error {
	return refusal{what: "oom_score_adj: a negative one has the kernel kill others before the task", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// Device answers for a device that a job names.
func (p Policy) Device(name string) error {
	if matchesAny(p.rules.AllowDevices, name) {
		return nil
	}
	return fmt.Errorf("%s: is not among the devices that the operator allows with allow_devices in the plugin's config", name)
}

// Capabilities answers for those that the job adds.
func (p Policy) Capabilities(names []string) error {
	missing := capabilities.New(p.rules.AllowCaps).Difference(capabilities.New(names))
	if len(names) == 0 || slices.Contains(p.rules.AllowCaps, "all") || missing.Empty() {
		return nil
	}
	return fmt.Errorf("capability: the operator does not allow %s; allow_caps in the plugin's config allows %s",
		strings.Join(missing.Slice(true), ", "), listed(p.rules.AllowCaps))
}

// Disk returns how much a task may write to its root, in bytes, where 0 is no
// limit. The task asks for a size, or for none with 0.
func (p Policy) Disk(asked uint64) (uint64, error) {
	standard, most := optionalSize(p.rules.DiskDefault), optionalSize(p.rules.DiskMax)
	switch {
	case asked > 0 && most > 0 && asked > most:
		return 0, fmt.Errorf("disk.size: %s is more than the operator allows with disk_max = %q in the plugin's config", humanize.IBytes(asked), *p.rules.DiskMax)
	case asked > 0:
		return asked, nil
	case standard > 0 && most > 0:
		return min(standard, most), nil
	case standard > 0:
		return standard, nil
	}
	return most, nil
}

func optionalSize(text *string) uint64 {
	if text == nil {
		return 0
	}
	return bytesOf(*text)
}

// Pids returns how many processes and threads a task may have. The task asks for a
// number, or for the operator's with 0.
func (p Policy) Pids(asked int64) (uint64, error) {
	most := p.rules.PidsLimit
	switch {
	case most == nil:
		return uint64(asked), nil
	case asked > *most:
		return 0, fmt.Errorf("pids_limit: %d is more than the operator allows with pids_limit = %d in the plugin's config", asked, *most)
	case asked > 0:
		return uint64(asked), nil
	}
	return uint64(*most), nil
}
