package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	pstructs "github.com/hashicorp/nomad/plugins/shared/structs"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
)

// fingerprintPeriod is the period of Nomad's own drivers. No signal reports changes of
// packages, cgroup controllers and sysctls.
const fingerprintPeriod = 30 * time.Second

// Fingerprint implements drivers.DriverPlugin. Nomad calls it only on the instance that
// serves tasks.
func (d *Driver) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	d.startUpkeep(ctx)
	fingerprints := make(chan *drivers.Fingerprint)
	go func() {
		defer close(fingerprints)
		ticker := time.NewTicker(fingerprintPeriod)
		defer ticker.Stop()
		for {
			select {
			case fingerprints <- d.fingerprint(ctx):
			case <-ctx.Done():
				return
			case <-d.ctx.Done():
				return
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			case <-d.ctx.Done():
				return
			}
		}
	}()
	return fingerprints, nil
}

// startUpkeep starts the maintenance of the host, which ends with ctx when the agent ends.
// The plugin process can outlive its agent. If the next agent starts a second plugin, this
// one must not remove the second one's machines.
func (d *Driver) startUpkeep(ctx context.Context) {
	config := d.currentConfig()
	go d.reaper.Run(ctx, config.DanglingMachines)
	context.AfterFunc(ctx, func() {
		if err := d.networks.ReleaseAll(); err != nil {
			d.logger.Warn("give ports back", "error", err)
		}
	})
	if config.Enabled {
		go d.networks.Watch(ctx, func(repaired string, err error) {
			if repaired != "" {
				d.logger.Warn("repaired " + repaired)
			}
			if err != nil {
				d.logger.Error("look after the host's network", "error", err)
			}
		})
	}
	go upkeep.Images{Store: imageStore, Config: config.ImageGC, Logger: d.logger}.Collect(ctx)
}

func (d *Driver) fingerprint(ctx context.Context) *drivers.Fingerprint {
	config := d.currentConfig()
	if !config.Enabled {
		return newFingerprint(config, nspawn.Host{})
	}
	ctx, cancel := context.WithTimeout(ctx, fingerprintPeriod)
	defer cancel()
	fingerprint := newFingerprint(config, nspawn.DetectHost(ctx, d.bus, dirs.Default))
	for _, finding := range d.networks.Findings() {
		fingerprint.HealthDescription += "; networks: " + finding
	}
	return fingerprint
}

// newFingerprint returns what the host can be used for.
func newFingerprint(config operator.Config, host nspawn.Host) *drivers.Fingerprint {
	if !config.Enabled {
		return &drivers.Fingerprint{
			Health:            drivers.HealthStateUndetected,
			HealthDescription: "disabled: the plugin's config has enabled = false",
		}
	}
	fingerprint := &drivers.Fingerprint{
		Health:            drivers.HealthStateHealthy,
		HealthDescription: healthy(host),
		Attributes:        attributes(config, host),
	}
	if err := errors.Join(host.Problems...); err != nil {
		fingerprint.Health = drivers.HealthStateUnhealthy
		if host.Nspawn == "" {
			fingerprint.Health = drivers.HealthStateUndetected
		}
		fingerprint.HealthDescription = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return fingerprint
}

// healthy returns the description of a healthy host. It includes the reason if roots are
// not made in the usual way.
func healthy(host nspawn.Host) string {
	switch rootKind(host) {
	case idmappedOverlay:
		return drivers.DriverHealthy
	case chownedOverlay:
		return fmt.Sprintf("%s; owners of files are changed in a private copy for each task, which is slow: %v", drivers.DriverHealthy, host.Overlay)
	}
	return fmt.Sprintf("%s; copy-on-write roots with user namespaces do not work: %v", drivers.DriverHealthy, host.ChownedOverlay)
}

// The ways to make a copy-on-write root with a user namespace.
const (
	idmappedOverlay = "idmapped-overlay"
	chownedOverlay  = "chowned-overlay"
)

// rootKind returns the way that works in the driver's own directory. An image elsewhere
// may need another one.
func rootKind(host nspawn.Host) string {
	switch {
	case host.Overlay == nil:
		return idmappedOverlay
	case host.ChownedOverlay == nil:
		return chownedOverlay
	}
	return ""
}

// attributes returns the node attributes on which jobs can put constraints. All of them
// are always sent, because Nomad keeps the last value of one that is missing.
func attributes(config operator.Config, host nspawn.Host) map[string]*pstructs.Attribute {
	policy := config.Policy(structs.DefaultNamespace)
	list := map[string]*pstructs.Attribute{
		"":                    pstructs.NewBoolAttribute(true),
		".version":            pstructs.NewStringAttribute(Version),
		".systemd.version":    pstructs.NewStringAttribute(""),
		".privileged.enabled": pstructs.NewBoolAttribute(policy.HostUsers() == nil),
		".volumes.enabled":    pstructs.NewBoolAttribute(policy.Volumes()),
		".host_network":       pstructs.NewBoolAttribute(policy.HostNetwork() == nil),
		".machined":           pstructs.NewBoolAttribute(host.Machined),
		".networkd":           pstructs.NewBoolAttribute(host.Networkd),
		".resolved":           pstructs.NewBoolAttribute(host.Resolved),
		".userns":             pstructs.NewBoolAttribute(host.UserNamespaces == nil),
		".root":               pstructs.NewStringAttribute(rootKind(host)),
		".overlay.idmapped":   pstructs.NewBoolAttribute(host.Overlay == nil),
		".disk.limit":         pstructs.NewStringAttribute(string(host.QuotaKind)),
		".cgroup.controllers": pstructs.NewStringAttribute(strings.Join(slices.Sorted(slices.Values(host.Controllers)), ",")),
	}
	if host.Version > 0 {
		list[".systemd.version"] = pstructs.NewStringAttribute(fmt.Sprint(host.Version))
	}
	attributes := map[string]*pstructs.Attribute{}
	for name, value := range list {
		attributes["driver."+Name+name] = value
	}
	return attributes
}
