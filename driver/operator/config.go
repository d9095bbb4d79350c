// Package operator is what the operator of a client configures in the agent's `plugin`
// block: how the driver works there, and what it allows jobs. It is pure, like package
// job.
//
// Config is the block. A Policy is what the block allows the jobs of one Nomad namespace.
// Each of its methods checks one request of a job, and returns nil or the error that the
// job's author reads. The options of a Policy are in rules.go. Its methods are grouped by
// feature, in files with the same names as in package job.
package operator

import (
	"fmt"
	"net/netip"
	"time"

	"nomad-driver-nspawn/driver/schema"
)

// Config is the plugin's configuration, in the agent's `plugin` block. A job can reach
// nothing outside of its machine unless the operator allows it here.
type Config struct {
	Enabled              bool   `codec:"enabled"`
	DisableLogCollection bool   `codec:"disable_log_collection"`
	ImagePullTimeout     string `codec:"image_pull_timeout"`
	PullActivityTimeout  string `codec:"pull_activity_timeout"`
	NetworkPool          string `codec:"network_pool"`
	policyOptions
	// Namespaces are different rules for the jobs of some Nomad namespaces.
	Namespaces map[string]policyOptions `codec:"namespace"`
	upkeepOptions
	registryOptions
}

// DefaultConfig returns the configuration if the operator sets nothing. The schema takes
// its defaults from here.
func DefaultConfig() Config {
	return Config{
		Enabled:             true,
		ImagePullTimeout:    "15m",
		PullActivityTimeout: "2m",
		policyOptions:       defaultPolicy(),
		Namespaces:          map[string]policyOptions{},
		upkeepOptions:       defaultUpkeep(),
	}
}

// ConfigSchema is the schema of Config.
var ConfigSchema = schema.Merge(agentSchema, policySchema, upkeepSchema, registrySchema)

var agentSchema = schema.Options{
	"enabled":                schema.WithDefault("enabled", "bool", defaults.Enabled),
	"disable_log_collection": schema.WithDefault("disable_log_collection", "bool", defaults.DisableLogCollection),
	"image_pull_timeout":     schema.WithDefault("image_pull_timeout", "string", defaults.ImagePullTimeout),
	"network_pool":           schema.Attr("network_pool", "string"),
	"pull_activity_timeout":  schema.WithDefault("pull_activity_timeout", "string", defaults.PullActivityTimeout),
}

// defaults are the defaults of the schemas. They are only read.
var defaults = DefaultConfig()

// Validate returns every mistake at once.
func (c Config) Validate() error {
	var found schema.Mistakes
	found.Add(
		c.validateUpkeep(),
		c.validateRegistry(),
		schema.CheckDuration("image_pull_timeout", c.ImagePullTimeout),
		schema.CheckDuration("pull_activity_timeout", c.PullActivityTimeout),
		c.validatePolicy(),
		checkPool(c.NetworkPool),
	)
	return found.Err()
}

// PullTimeouts returns how long a pull may take, and how long it may receive nothing.
func (c Config) PullTimeouts() (total, inactivity time.Duration) {
	return schema.Duration(c.ImagePullTimeout), schema.Duration(c.PullActivityTimeout)
}

// AddressPool returns the network from which the operator wants the addresses of veth
// links. It is not valid if the operator has not chosen one.
func (c Config) AddressPool() netip.Prefix {
	pool, _ := netip.ParsePrefix(c.NetworkPool)
	return pool
}

func checkPool(pool string) error {
	if pool == "" {
		return nil
	}
	p, err := netip.ParsePrefix(pool)
	if err != nil || !p.Addr().Is4() || p.Bits() < 16 || p.Bits() > 30 {
		return fmt.Errorf("network_pool: %q is not an IPv4 network of /16 to /30, as 10.213.0.0/16", pool)
	}
	return nil
}
