package operator

import (
	"maps"
	"regexp"
	"slices"

	"nomad-driver-nspawn/driver/schema"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

type registryOptions struct {
	Registry Registry `codec:"registry"`
}

// Registry configures how images are fetched from registries.
type Registry struct {
	CAFile       string              `codec:"ca_file"`
	DockerConfig string              `codec:"docker_config"`
	Mirrors      map[string][]string `codec:"mirrors"`
	PlainHTTP    []string            `codec:"plain_http"`
}

var registrySchema = schema.Options{
	"registry": schema.Block("registry", schema.Options{
		"ca_file":       schema.Attr("ca_file", "string"),
		"docker_config": schema.Attr("docker_config", "string"),
		"mirrors":       hclspec.NewBlockAttrs("mirrors", "list(string)", false), // as schema.StringMap
		"plain_http":    schema.Attr("plain_http", "list(string)"),
	}),
}

var registryHost = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?$`)

func (c Config) validateRegistry() error {
	var found schema.Mistakes
	r := c.Registry
	found.Add(schema.Absolute("registry.ca_file", r.CAFile), schema.Absolute("registry.docker_config", r.DockerConfig))
	for i, host := range r.PlainHTTP {
		found.Add(schema.Matches(schema.At("registry.plain_http", i), host, registryHost, "a host or host:port"))
	}
	for _, host := range slices.Sorted(maps.Keys(r.Mirrors)) {
		found.Add(schema.Matches("registry.mirrors", host, registryHost, "a host or host:port"))
	}
	return found.Err()
}
