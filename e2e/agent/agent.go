// Package agent runs a real Nomad agent, server and client in one, with the nspawn driver
// on a disposable host, and controls it through Nomad's API.
//
// It does not poll: the agent notifies systemd when it is up, and Nomad's blocking queries
// report every change of state after that.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"nomad-driver-nspawn/e2e/host"
)

// Driver is the name of the driver under test.
const Driver = "nspawn"

// Paths on the host.
const (
	Nomad  = "/usr/local/bin/nomad"
	Plugin = "/opt/nomad/plugins/nomad-driver-nspawn"
	Shared = "/srv/shared" // of the host volume of example/agent.hcl

	unit      = "nomad.service"
	configDir = "/etc/nomad.d"
)

// unitFile is like the unit of Nomad's own packages in what matters to tasks: only the
// agent itself is stopped. It does not restart by itself, so that tests decide how long
// the agent is down.
const unitFile = `[Unit]
Description=Nomad

[Service]
Type=notify
ExecStart=` + Nomad + ` agent -config ` + configDir + `
KillMode=process
KillSignal=SIGINT
LimitNOFILE=65536
TasksMax=infinity
OOMScoreAdjust=-1000
`

// hostConfig is for every agent in tests. A disposable host is not in a cloud, and looking
// for one takes seconds. And tests look at the remains of ended allocations, of which a
// restarted agent keeps only 50 by default.
const hostConfig = `client {
  gc_max_allocs = 1000
  options = { "fingerprint.denylist" = "env_aws,env_azure,env_digitalocean,env_gce" }
}
`

// readyTimeout is many times as long as an agent needs to start.
const readyTimeout = time.Minute

// Options say what to run and where.
type Options struct {
	Suite  string // of the host, see host.Options
	Name   string // of the host
	LAN    string // that it shares with other hosts
	Plugin string // path of the driver's executable on this machine
	// Devices are paths of device plugins on this machine. The agent runs those that Config
	// has blocks for.
	Devices []string
	// Config are the agent's configuration files, merged in this order.
	Config []string
}

// Agent is a Nomad agent that is up, and its host.
type Agent struct {
	Host *host.Host
	API  *api.Client
	Node string // ID of the agent's own node
}

// Up boots a host with the guest images busybox and debian, starts the agent
// on it and returns when the driver is ready to run tasks.
func Up(ctx context.Context, opts Options) (*Agent, error) {
	binds, err := binds(ctx, opts)
	if err != nil {
		return nil, err
	}
	h, err := host.Up(ctx, host.Options{Suite: opts.Suite, Name: opts.Name, LAN: opts.LAN, Binds: binds})
	if err != nil {
		return nil, err
	}
	a, err := start(ctx, h, opts)
	if err != nil {
		return nil, errors.Join(err, h.Down())
	}
	return a, nil
}

// binds returns the binds of the tools and the images. Tasks run on a copy-on-write layer
// over the images, which all hosts share.
func binds(ctx context.Context, opts Options) ([]host.Bind, error) {
	plugin, err := filepath.Abs(opts.Plugin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(plugin); err != nil {
		return nil, fmt.Errorf("find the plugin: run `make build` first: %w", err)
	}
	nomad, err := host.NomadBinary(ctx)
	if err != nil {
		return nil, err
	}
	busybox, err := host.BusyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	debian, err := host.DebianImage(ctx)
	if err != nil {
		return nil, err
	}
	binds := []host.Bind{
		{Source: nomad, Target: Nomad, ReadOnly: true},
		{Source: plugin, Target: Plugin, ReadOnly: true},
		{Source: busybox, Target: "/var/lib/machines/busybox", ReadOnly: true},
		{Source: debian, Target: "/var/lib/machines/debian", ReadOnly: true},
	}
	for _, device := range opts.Devices {
		binds = append(binds, host.Bind{Source: device, Target: filepath.Join(filepath.Dir(Plugin), filepath.Base(device)), ReadOnly: true})
	}
	return binds, nil
}

func start(ctx context.Context, h *host.Host, opts Options) (*Agent, error) {
	client, err := api.NewClient(&api.Config{Address: fmt.Sprintf("http://%s:4646", h.Addr())})
	if err != nil {
		return nil, err
	}
	a := &Agent{Host: h, API: client}
	files := map[string]string{
		"/etc/systemd/system/" + unit: unitFile,
		configDir + "/host.hcl":       hostConfig,
		Shared + "/README":            "This directory of the host is the volume \"shared\".\n",
	}
	for i, config := range opts.Config {
		text, err := os.ReadFile(config)
		if err != nil {
			return nil, fmt.Errorf("read agent config: %w", err)
		}
		files[fmt.Sprintf("%s/%d-%s", configDir, i, filepath.Base(config))] = string(text)
	}
	// Binds into machines are ID-mapped. The host's root cannot be, because it is an
	// overlay, but /var/tmp can.
	if _, err := a.Command(ctx, "mount", "--mkdir", "--bind", "/var/tmp", Shared); err != nil {
		return nil, err
	}
	for path, text := range files {
		if err := a.WriteFile(path, text); err != nil {
			return nil, err
		}
	}
	if _, err := a.Command(ctx, "systemctl", "daemon-reload"); err != nil {
		return nil, err
	}
	return a, a.Start(ctx)
}

// WriteFile writes a file of the host, and the directories above it.
func (a *Agent) WriteFile(path, text string) error {
	path = filepath.Join(a.Host.Root(), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write file of host: %w", err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write file of host: %w", err)
	}
	return nil
}

// Command runs a command on the host and returns its standard output.
func (a *Agent) Command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := a.Host.Command(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("run %s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// Journal returns the last lines of a unit's journal on the host.
func (a *Agent) Journal(ctx context.Context, unit string, lines int) string {
	_, _ = a.Command(ctx, "journalctl", "--sync")
	text, err := a.Command(ctx, "journalctl", "--unit", unit, "--no-pager", "--output=cat", fmt.Sprintf("--lines=%d", lines))
	if err != nil {
		return err.Error()
	}
	return text
}

// Log returns everything that the agent and, through it, the plugin have logged.
func (a *Agent) Log(ctx context.Context) (string, error) {
	if _, err := a.Command(ctx, "journalctl", "--sync"); err != nil {
		return "", err
	}
	return a.Command(ctx, "journalctl", "--unit", unit, "--no-pager", "--output=cat")
}
