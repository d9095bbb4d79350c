// Command device is a device plugin of Nomad for the tests. It offers devices that the
// tests make on the disposable host.
package main

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/device"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// dir is the directory of the host with a directory for each device, of which a task gets
// the one of its device. The nodes are /dev/e2e-plugin-ID and, for all devices together,
// /dev/e2e-plugin-control.
const dir = "/var/tmp/e2e-plugin"

func main() {
	plugins.Serve(func(hclog.Logger) any { return plugin{} })
}

// plugin is the device plugin. It has no state.
type plugin struct{}

func (plugin) PluginInfo() (*base.PluginInfoResponse, error) {
	return &base.PluginInfoResponse{
		Type: base.PluginTypeDevice, PluginApiVersions: []string{device.ApiVersion010}, PluginVersion: "v0.1.0", Name: "e2e-device",
	}, nil
}

func (plugin) ConfigSchema() (*hclspec.Spec, error) {
	return hclspec.NewObject(map[string]*hclspec.Spec{}), nil
}

func (plugin) SetConfig(*base.Config) error { return nil }

// Fingerprint tells of two groups of devices, and nothing more until ctx ends.
func (plugin) Fingerprint(ctx context.Context) (<-chan *device.FingerprintResponse, error) {
	answers := make(chan *device.FingerprintResponse)
	go func() {
		defer close(answers)
		var groups []*device.DeviceGroup
		for _, name := range []string{"read", "write"} {
			group := &device.DeviceGroup{Vendor: "e2e", Type: "node", Name: name}
			for _, n := range []string{"1", "2", "3", "4"} {
				group.Devices = append(group.Devices, &device.Device{ID: name + n, Healthy: true})
			}
			groups = append(groups, group)
		}
		select {
		case answers <- device.NewFingerprint(groups...):
			<-ctx.Done()
		case <-ctx.Done():
		}
	}()
	return answers, nil
}

// Reserve gives a task its devices, with the access that is the name of their group, a node
// that all devices share, a read-only mount, and a variable.
func (plugin) Reserve(ids []string) (*device.ContainerReservation, error) {
	reservation := &device.ContainerReservation{
		Envs: map[string]string{"E2E_DEVICES": strings.Join(ids, ",")},
		Devices: []*device.DeviceSpec{
			{TaskPath: "/dev/e2e/control", HostPath: "/dev/e2e-plugin-control", CgroupPerms: "r"},
		},
		Mounts: []*device.Mount{{TaskPath: "/opt/e2e/library", HostPath: dir + "/library", ReadOnly: true}},
	}
	for _, id := range ids {
		access := "r"
		if strings.HasPrefix(id, "write") {
			access = "rw"
		}
		reservation.Devices = append(reservation.Devices, &device.DeviceSpec{TaskPath: "/dev/" + id, HostPath: "/dev/e2e-plugin-" + id, CgroupPerms: access})
		reservation.Mounts = append(reservation.Mounts, &device.Mount{TaskPath: "/opt/e2e/" + id, HostPath: dir + "/" + id})
	}
	return reservation, nil
}

// Stats tells nothing.
func (plugin) Stats(ctx context.Context, _ time.Duration) (<-chan *device.StatsResponse, error) {
	answers := make(chan *device.StatsResponse)
	go func() {
		defer close(answers)
		<-ctx.Done()
	}()
	return answers, nil
}
