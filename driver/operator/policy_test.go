package operator

import (
	"reflect"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/network/links"
)

// TestRulesCanBeUnset checks that each rule can be unset, because rules are merged field
// by field.
func TestRulesCanBeUnset(t *testing.T) {
	rules := reflect.TypeFor[policyOptions]()
	for i := range rules.NumField() {
		kind := rules.Field(i).Type.Kind()
		must.True(t, kind == reflect.Pointer || kind == reflect.Slice, must.Sprint(rules.Field(i).Name))
	}
}

func TestPolicyOfNamespace(t *testing.T) {
	config := parseConfig(t, `
		volumes        = true
		image_paths    = ["/srv"]
		allowed_images = ["local"]
		namespace "prod" {
			volumes            = false
			allow_host_network = true
			image_paths        = []
		}
		namespace "dev" {}
	`)
	must.NoError(t, config.Validate())
	for _, other := range []string{"dev", "default", ""} {
		must.Eq(t, config.policyOptions, config.Policy(other).rules)
	}
	prod := config.Policy("prod").rules
	must.False(t, *prod.Volumes)
	must.True(t, *prod.AllowHostNetwork)
	must.SliceEmpty(t, prod.ImagePaths)
	must.Eq(t, []string{"local"}, prod.AllowedImages)
	must.True(t, *config.Policy("default").rules.Volumes) // the merge has changed nothing
	must.False(t, *config.Policy("default").rules.AllowHostNetwork)
}

func TestMistakesOfPolicy(t *testing.T) {
	err := parseConfig(t, `
		volume_paths   = [""]
		allow_sysctls  = ["net.*", "kernel.*", "net.["]
		allow_caps     = ["NET_ADMIN", "FLY"]
		allowed_images = ["alpine", "https://", "srv"]
		disk_max       = "much"
		namespace "a/b" {
			pids_limit   = 1
			disk_default = "1kB"
		}
		namespace "prod" {
			image_paths    = ["srv"]
			allowed_images = ["https://example.org/a/../b"]
		}
	`).Validate()
	for _, want := range []string{
		"volume_paths[0]: must not be empty", "allow_caps: fly", `allowed_images[0]: "alpine" is none of`, "allowed_images[1]: the URL is none of",
		`allowed_images[2]: "srv" is none of`, `disk_max: "much" is not a size`, `namespace "a/b": name`, `namespace "a/b": pids_limit: want 16`,
		`namespace "a/b": disk_default: "1kB" is less`, `namespace "prod": image_paths[0]`, `namespace "prod": allowed_images[0]: the URL's path`,
		`allow_sysctls[1]: "kernel.*" does not begin with net.`, "allow_sysctls[2]: syntax error in pattern",
	} {
		must.ErrorContains(t, err, want)
	}
	must.Eq(t, 13, strings.Count(err.Error(), "\n")+1)
}

func TestDiskOfPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		config  string
		asked   uint64
		want    uint64
		refused bool
	}{
		"no rule":            {"", 5 << 20, 5 << 20, false},
		"no limit":           {"", 0, 0, false},
		"default":            {`disk_default = "2MiB"`, 0, 2 << 20, false},
		"above the default":  {`disk_default = "2MiB"`, 5 << 20, 5 << 20, false},
		"below the maximum":  {`disk_max = "8MiB"`, 5 << 20, 5 << 20, false},
		"maximum as default": {`disk_max = "8MiB"`, 0, 8 << 20, false},
		"above the maximum":  {`disk_max = "2MiB"`, 5 << 20, 0, true},
		"default is larger":  {"disk_max = \"2MiB\"\ndisk_default = \"8MiB\"", 0, 2 << 20, false},
		"unset again":        {"disk_max = \"2MiB\"\nnamespace \"x\" {\ndisk_max = \"\"\n}", 5 << 20, 5 << 20, false},
	} {
		got, err := parseConfig(t, c.config).Policy("x").Disk(c.asked)
		must.Eq(t, c.refused, err != nil, must.Sprint(name))
		must.Eq(t, c.want, got, must.Sprint(name))
	}
}

func TestDefaultNetwork(t *testing.T) {
	for network, good := range map[string]bool{
		"veth": true, "host": true, "zone:lab": true, "bridge:br-lan.7": true,
		"": false, "none": false, "zone": false, "zone:": false, "zone:thirteen-more": false, "bridge:x y": false, "bridge:..": false, "veth:x": false,
		"zone:a\nb": false, "macvlan:eth0": false,
	} {
		config := DefaultConfig()
		config.DefaultNetwork = &network
		err := config.Validate()
		must.Eq(t, good, err == nil, must.Sprintf("%q: %v", network, err))
	}
}

// The operator's own network needs no other permission, and gives none to others.
func TestDefaultNetworkIsAllowed(t *testing.T) {
	policy := parseConfig(t, "default_network = \"zone:lab\"\nallow_network_zones = []").Policy("default")
	must.NoError(t, policy.Network("network_zone", links.Zone, "lab"))
	must.ErrorContains(t, policy.Network("network_zone", links.Zone, "prod"), "allow_network_zones")
	must.ErrorContains(t, policy.Network("network_bridge", links.Bridge, "lab"), "allow_network_bridges")
	must.ErrorContains(t, policy.HostNetwork(), "allow_host_network")
	policy = parseConfig(t, `default_network = "host"`).Policy("default")
	must.NoError(t, policy.HostNetwork())
	must.ErrorContains(t, policy.Network("network_bridge", links.Bridge, ""), "allow_network_bridges")
}
