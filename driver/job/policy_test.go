package job

import (
	"reflect"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image/download"
)

// Rules are merged field by field, so that each must be one that can be unset.
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
	} {
		must.ErrorContains(t, err, want)
	}
	must.Eq(t, 11, strings.Count(err.Error(), "\n")+1)
}

func TestAllowedImages(t *testing.T) {
	config := parseConfig(t, `allowed_images = [
		"docker.io/library", "registry.example.org:5000", "ghcr.io/team/app/",
		"https://images.example.org/debian/", "http://Example.org:80", "/srv/images"
	]
	allow_unverified_images = true`)
	must.NoError(t, config.Validate())
	policy := config.Policy("default")
	for name, allowed := range map[string]bool{
		"alpine:3": true,
		"docker.io/library/alpine@sha256:" + strings.Repeat("0", 64): true,
		"docker.io/libraryx/alpine:3":                                false,
		"team/app:1":                                                 false,
		"registry.example.org:5000/a/b:1":                            true,
		"registry.example.org/a:1":                                   false,
		"registry.example.org.evil.org:5000/a":                       false,
		"ghcr.io/team/app:1":                                         true,
		"ghcr.io/team/app/sub:1":                                     true,
		"ghcr.io/team/apple:1":                                       false,
		"https://images.example.org/debian/12/a.tar.xz":              true,
		"https://images.example.org:443/debian/a.tar.xz":             true,
		"https://IMAGES.example.org/debian/a.tar.xz":                 true,
		"http://images.example.org/debian/a.tar.xz":                  false,
		"https://images.example.org/debianx/a.tar.xz":                false,
		"https://images.example.org/debian/../a.tar.xz":              false,
		"https://images.example.org/debian/%2e%2e/a.tar.xz":          false,
		"https://images.example.org/debian%2fa.tar.xz":               false,
		"https://images.example.org@evil.org/debian/a.tar.xz":        false,
		"https://me:secret@images.example.org/debian/a.tar.xz":       true,
		"https://images.example.org.evil.org/debian/a.tar.xz":        false,
		"http://example.org/any/a.tar.xz":                            true,
	} {
		_, err := taskOf(name).Source(policy)
		if allowed {
			must.NoError(t, err, must.Sprint(name))
		} else {
			must.ErrorContains(t, err, "allowed_images", must.Sprint(name))
			must.StrNotContains(t, err.Error(), "secret")
		}
	}
	below := func(path string) func(string) bool { return func(dir string) bool { return within(dir, path) } }
	must.NoError(t, policy.NamedImage("debian", below("/srv/images/debian")))
	must.ErrorContains(t, policy.NamedImage("debian", below("/var/lib/machines/debian")), "allowed_images")
	must.ErrorContains(t, policy.ImagePath("/srv/images/a", below("/srv/images/a")), "image_paths")
	must.ErrorContains(t, policy.ImagePath("/var/lib/machines/a", below("/var/lib/machines/a")), "allowed_images")
	must.ErrorContains(t, policy.TaskImage("local/a.tar"), "allowed_images")
	must.NoError(t, parseConfig(t, `allowed_images = ["local"]`).Policy("").TaskImage("local/a.tar"))
	must.NoError(t, DefaultConfig().Policy("").WebImage(download.Request{URL: "https://example.org/a//b.tar"}))
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
