// Package driver is Nomad's side of the plugin: it implements the task driver "nspawn"
// with package nspawn. Only this package and those below it know jobs, allocations, HCL
// and hclog.
//
// # StartTask, step by step
//
//  1. Driver.StartTask (task.go) asks whether a plugin that has died since has already made
//     the machine of the same start.
//  2. Driver.prepare (prepare.go) decodes the job's options, finds the image or pulls it
//     (image.go, pull.go), and lets package job turn them into a machine.Spec.
//     resolvePaths (host_files.go) then checks the paths of the host that the job names.
//  3. startMachine (task.go) starts the machine, or adopts the one of the earlier start.
//     nspawn/doc.go continues from there. networkStep (network.go) connects the network while
//     the payload waits. openStreams (logs.go) gives Nomad's pipes to the unit.
//  4. Nomad receives the handle with the TaskState (handle.go). watch (task.go) follows the
//     machine until it ends.
//
// RecoverTask (recover.go) begins at step 4, with the TaskState that Nomad has kept.
package driver

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/client/lib/cpustats"
	"github.com/hashicorp/nomad/drivers/shared/eventer"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Name is the value of `driver` in a job.
const Name = "nspawn"

// Version is set by the linker for releases. The default must be a valid version, too,
// because Nomad's plugin loader parses it.
var Version = "0.1.0-dev"

// Driver is the task driver plugin.
type Driver struct {
	*eventer.Eventer

	ctx      context.Context // ends with the plugin, not with any task
	logger   hclog.Logger
	bus      *systemd.Conn
	machines *nspawn.Manager
	tasks    tasks
	reaper   *upkeep.Reaper
	share    *upkeep.Share
	networks *network.Host

	mu      sync.RWMutex // guards config and compute
	config  operator.Config
	compute cpustats.Compute
}

var (
	_ drivers.DriverPlugin            = (*Driver)(nil)
	_ drivers.ExecTaskStreamingDriver = (*Driver)(nil)
)

// New returns the plugin that Nomad serves. It does not touch the host before it is asked
// to, because Nomad creates instances that it does not use.
func New(ctx context.Context, logger hclog.Logger) *Driver {
	logger = logger.Named(Name)
	bus := systemd.New(systemd.SystemBus)
	networks := network.New()
	d := &Driver{
		Eventer:  eventer.NewEventer(ctx, logger),
		ctx:      ctx,
		logger:   logger,
		bus:      bus,
		machines: nspawn.NewManager(bus, dirs.Default, networks),
		networks: networks,
		config:   operator.DefaultConfig(),
	}
	d.share = upkeep.NewShare(ctx, d.machines.LimitShare, logger)
	d.reaper = upkeep.NewReaper(d.machines, d.tasks.known, logger)
	return d
}

// PluginInfo implements base.BasePlugin.
func (d *Driver) PluginInfo() (*base.PluginInfoResponse, error) {
	return &base.PluginInfoResponse{
		Type:              base.PluginTypeDriver,
		PluginApiVersions: []string{drivers.ApiVersion010},
		PluginVersion:     Version,
		Name:              Name,
	}, nil
}

// ConfigSchema implements base.BasePlugin.
func (d *Driver) ConfigSchema() (*hclspec.Spec, error) { return operator.ConfigSchema, nil }

// TaskConfigSchema implements drivers.DriverPlugin.
func (d *Driver) TaskConfigSchema() (*hclspec.Spec, error) { return job.TaskSchema, nil }

// SetConfig implements base.BasePlugin. Nomad calls it without AgentConfig, on instances
// that it does not use, to validate the configuration. Options that the configuration does
// not set have their defaults, even if it sets nothing at all.
func (d *Driver) SetConfig(request *base.Config) error {
	config := operator.DefaultConfig()
	if len(request.PluginConfig) > 0 {
		if err := base.MsgPackDecode(request.PluginConfig, &config); err != nil {
			return fmt.Errorf("decode plugin config: %w", err)
		}
	}
	if err := config.Validate(); err != nil {
		return fmt.Errorf("plugin config: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = config
	d.networks.SetPool(config.AddressPool())
	if request.AgentConfig != nil && request.AgentConfig.Driver != nil {
		d.compute = request.AgentConfig.Compute()
	}
	return nil
}

func (d *Driver) currentConfig() operator.Config {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.config
}

// Capabilities implements drivers.DriverPlugin.
func (d *Driver) Capabilities() (*drivers.Capabilities, error) {
	return &drivers.Capabilities{
		SendSignals: true,
		Exec:        true,
		FSIsolation: fsisolation.Image,
		NetIsolationModes: []drivers.NetIsolationMode{
			drivers.NetIsolationModeHost,
			drivers.NetIsolationModeGroup,
			drivers.NetIsolationModeTask,
		},
		MountConfigs: drivers.MountConfigSupportAll,
	}, nil
}
