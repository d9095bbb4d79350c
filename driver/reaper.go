package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn"
)

// DanglingMachines configures the reaper of machines whose tasks Nomad no
// longer knows, as docker's dangling_containers.
type DanglingMachines struct {
	Enabled       bool   `codec:"enabled"`
	Period        string `codec:"period"`
	CreationGrace string `codec:"creation_grace"`
	DryRun        bool   `codec:"dry_run"`
}

var danglingSpec = hclspec.NewDefault(
	hclspec.NewBlock("dangling_machines", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"enabled":        withDefault("enabled", "bool", "true"),
		"period":         withDefault("period", "string", `"5m"`),
		"creation_grace": withDefault("creation_grace", "string", `"5m"`),
		"dry_run":        withDefault("dry_run", "bool", "false"),
	})),
	hclspec.NewLiteral(`{ enabled = true, period = "5m", creation_grace = "5m", dry_run = false }`),
)

func (c DanglingMachines) validate() error {
	if !c.Enabled {
		return nil
	}
	return errors.Join(
		positive("dangling_machines.period", c.Period),
		positive("dangling_machines.creation_grace", c.CreationGrace),
	)
}

func positive(at, value string) error {
	if d, err := time.ParseDuration(value); err != nil || d <= 0 {
		return fmt.Errorf("%s: %q is not a positive duration, as 5m", at, value)
	}
	return nil
}

// reap removes dangling machines, period after period. Nothing tells of an
// allocation that Nomad has forgotten, so they have to be looked for.
func (d *Driver) reap() {
	config := d.policy().DanglingMachines
	if !config.Enabled {
		return
	}
	period, _ := time.ParseDuration(config.Period) // validated
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := d.reapOnce(config); err != nil && d.ctx.Err() == nil {
				d.logger.Warn("look for dangling machines", "error", err)
			}
		case <-d.ctx.Done():
			return
		}
	}
}

func (d *Driver) reapOnce(config DanglingMachines) error {
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	records, err := d.machines.Machines(ctx)
	if err != nil {
		return err
	}
	grace, _ := time.ParseDuration(config.CreationGrace)
	machines, nodes := d.tasks.known()
	var errs []error
	for _, machine := range dangling(records, machines, nodes, time.Now().Add(-grace)) {
		d.logger.Info("dangling machine: Nomad has no task for it", "machine", machine, "dry_run", config.DryRun)
		if !config.DryRun {
			errs = append(errs, d.machines.Remove(ctx, machine))
		}
	}
	return errors.Join(errs...)
}

// dangling picks the machines that are of our node, started before a time, and
// of no task that we know. Another client on this host has another node; before
// our first task we do not know ours, and leave all alone.
func dangling(records []nspawn.Record, machines, nodes map[string]bool, before time.Time) (names []string) {
	for _, record := range records {
		node := record.Fields["NOMAD_NODE_ID"]
		if node != "" && nodes[node] && !machines[record.Machine] && record.Started.Before(before) {
			names = append(names, record.Machine)
		}
	}
	return names
}
