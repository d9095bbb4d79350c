package operator

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/hashicorp/nomad/drivers/shared/capabilities"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/driver/schema"
)

// policyOptions are what the operator allows jobs: in the plugin's config all of them, and
// in a `namespace` block those of a Nomad namespace. Nil means that a block does not set
// the option.
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
	AllowSysctls           []string `codec:"allow_sysctls"`
	AllowUnverifiedImages  *bool    `codec:"allow_unverified_images"`
	AllowedImages          []string `codec:"allowed_images"`
	DefaultNetwork         *string  `codec:"default_network"`
	DiskDefault            *string  `codec:"disk_default"`
	DiskMax                *string  `codec:"disk_max"`
	ImagePaths             []string `codec:"image_paths"`
	NoNewPrivileges        *bool    `codec:"no_new_privileges"`
	PidsLimit              *int64   `codec:"pids_limit"`
	RequireUserNamespaces  *bool    `codec:"require_user_namespaces"`
	VolumePaths            []string `codec:"volume_paths"`
	Volumes                *bool    `codec:"volumes"`
}

// defaultPolicy allows nothing that reaches out of a job's machine. In a user namespace,
// capabilities do not, so all of them are allowed.
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
		DefaultNetwork:        ptr("veth"),
		NoNewPrivileges:       new(bool),
		ImagePaths:            []string{"/var/lib/machines"},
		PidsLimit:             ptr(int64(maxPids)),
		RequireUserNamespaces: new(bool),
		VolumePaths:           []string{"/"},
		Volumes:               new(bool),
	}
}

func ptr[T any](value T) *T { return &value }

var policySchema = func() schema.Options {
	all := policyRules(true)
	all["namespace"] = hclspec.NewBlockMap("namespace", []string{"name"}, hclspec.NewObject(policyRules(false)))
	return all
}()

// policyRules returns the schemas of policyOptions, with or without the defaults.
func policyRules(defaults bool) schema.Options {
	d := defaultPolicy()
	rules := schema.Options{
		"allow_devices":            schema.Attr("allow_devices", "list(string)"),
		"allow_network_bridges":    schema.Attr("allow_network_bridges", "list(string)"),
		"allow_network_interfaces": schema.Attr("allow_network_interfaces", "list(string)"),
		"allow_sysctls":            schema.Attr("allow_sysctls", "list(string)"),
		"allowed_images":           schema.Attr("allowed_images", "list(string)"),
		"disk_default":             schema.Attr("disk_default", "string"),
		"disk_max":                 schema.Attr("disk_max", "string"),
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
		{"default_network", "string", d.DefaultNetwork},
		{"image_paths", "list(string)", d.ImagePaths},
		{"no_new_privileges", "bool", d.NoNewPrivileges},
		{"pids_limit", "number", d.PidsLimit},
		{"require_user_namespaces", "bool", d.RequireUserNamespaces},
		{"volume_paths", "list(string)", d.VolumePaths},
		{"volumes", "bool", d.Volumes},
	} {
		rules[rule.name] = schema.Attr(rule.name, rule.kind)
		if defaults {
			rules[rule.name] = schema.WithDefault(rule.name, rule.kind, rule.value)
		}
	}
	return rules
}

// namespaceName matches the names that Nomad allows for namespaces (nomad/structs,
// validNamespaceName).
var namespaceName = regexp.MustCompile(`^[a-zA-Z0-9-]{1,128}$`)

func (c Config) validatePolicy() error {
	found := c.policyOptions.mistakes("")
	for _, name := range slices.Sorted(maps.Keys(c.Namespaces)) {
		at := fmt.Sprintf("namespace %q: ", name)
		found.Add(schema.Prefixed(at, schema.Matches("name", name, namespaceName, "a name of letters, digits and -")))
		found.Add(c.Namespaces[name].mistakes(at)...)
	}
	return found.Err()
}

// mistakes returns the mistakes that can be seen in a block alone, each prefixed with the
// block's name.
func (p policyOptions) mistakes(block string) schema.Mistakes {
	var found schema.Mistakes
	for i, dir := range p.ImagePaths {
		found.Add(schema.NotEmpty(schema.At("image_paths", i), dir), schema.Absolute(schema.At("image_paths", i), dir))
	}
	for i, dir := range p.VolumePaths {
		found.Add(schema.NotEmpty(schema.At("volume_paths", i), dir), schema.Absolute(schema.At("volume_paths", i), dir))
	}
	for i, image := range p.AllowedImages {
		found.Add(schema.Prefixed(schema.At("allowed_images", i)+": ", checkAllowedImage(image)))
	}
	for i, pattern := range p.AllowDevices {
		found.Add(checkPattern(schema.At("allow_devices", i), pattern), schema.Absolute(schema.At("allow_devices", i), pattern))
	}
	found.Add(p.networkMistakes()...)
	found.Add(p.sysctlMistakes()...)
	unknown := capabilities.Supported().Difference(capabilities.New(p.AllowCaps))
	found.Unless(unknown.Empty(), "allow_caps: %s: the kernel has no such capabilities, see capabilities(7); all stands for all", unknown)
	for _, option := range []struct {
		name  string
		value *string
	}{{"disk_default", p.DiskDefault}, {"disk_max", p.DiskMax}} {
		if option.value != nil && *option.value != "" {
			found.Add(schema.CheckDisk(option.name, *option.value))
		}
	}
	if p.PidsLimit != nil {
		found.Add(schema.CheckPids("pids_limit", *p.PidsLimit))
	}
	for i, err := range found {
		found[i] = schema.Prefixed(block, err)
	}
	return found
}
