package operator

import (
	"strings"
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/shoenig/test/must"
)

func parseConfig(t *testing.T, hcl string) (config Config) {
	hclutils.NewConfigParser(ConfigSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &config)
	return config
}

// TestDefaults checks that the defaults are the same with and without the schema.
func TestDefaults(t *testing.T) {
	must.Eq(t, DefaultConfig(), parseConfig(t, ""))
	must.NoError(t, DefaultConfig().Validate())
}

// TestMistakesOfConfig checks that all mistakes of the operator are reported at once.
func TestMistakesOfConfig(t *testing.T) {
	err := parseConfig(t, `
		image_paths           = ["srv"]
		image_pull_timeout    = "soon"
		pull_activity_timeout = "0s"
		registry {
			ca_file    = "ca.pem"
			plain_http = ["http://example.org"]
			mirrors    = { "https://docker.io" = [] }
		}
		image_gc {
			max_size = "big"
		}
	`).Validate()
	for _, want := range []string{
		`image_paths[0]: "srv"`, `image_pull_timeout: "soon"`, `pull_activity_timeout: "0s"`, `registry.ca_file: "ca.pem"`,
		`registry.plain_http[0]: "http://example.org"`, `registry.mirrors: "https://docker.io"`, `image_gc.max_size: "big"`,
	} {
		must.ErrorContains(t, err, want)
	}
	must.Eq(t, 7, strings.Count(err.Error(), "\n")+1)
}
