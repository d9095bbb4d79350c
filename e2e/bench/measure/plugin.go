package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// plugin is the real plugin, in a separate process, with Nomad's own client.
type plugin struct {
	client *goplugin.Client
	driver drivers.DriverPlugin
	pid    int
	schema *hclspec.Spec // of a task's config block
}

// launch starts and configures the plugin as Nomad does.
func launch(ctx context.Context, path string) (p *plugin, err error) {
	logger := hclog.New(&hclog.LoggerOptions{Name: "plugin", Level: hclog.Warn, Output: os.Stderr})
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  base.Handshake,
		Plugins:          goplugin.PluginSet{base.PluginTypeDriver: drivers.NewDriverPlugin(nil, logger)},
		Cmd:              exec.Command(path),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           logger,
	})
	defer func() {
		if err != nil {
			client.Kill()
		}
	}()
	rpc, err := client.Client()
	if err != nil {
		return nil, fmt.Errorf("launch plugin: %w", err)
	}
	raw, err := rpc.Dispense(base.PluginTypeDriver)
	if err != nil {
		return nil, fmt.Errorf("dispense driver: %w", err)
	}
	p = &plugin{client: client, driver: raw.(drivers.DriverPlugin), pid: client.ReattachConfig().Pid}
	return p, p.configure(ctx)
}

func (p *plugin) configure(ctx context.Context) error {
	schema, err := p.driver.ConfigSchema()
	if err != nil {
		return fmt.Errorf("ask for the schema of the plugin's config: %w", err)
	}
	// The bench also does what bare nspawn does, which an operator must allow.
	options, err := withDefaults(schema, map[string]any{
		"allow_host_network": true,
		"allow_privileged":   true,
		"registry":           []map[string]any{{"plain_http": []string{registryHost}}},
	})
	if err != nil {
		return fmt.Errorf("plugin config: %w", err)
	}
	config := &base.Config{ApiVersion: drivers.ApiVersion010}
	if err := base.MsgPackEncode(&config.PluginConfig, options); err != nil {
		return fmt.Errorf("encode plugin config: %w", err)
	}
	if err := p.driver.SetConfig(config); err != nil {
		return fmt.Errorf("configure plugin: %w", err)
	}
	if p.schema, err = p.driver.TaskConfigSchema(); err != nil {
		return fmt.Errorf("ask for the schema of a task's config: %w", err)
	}
	return p.checkHealth(ctx)
}

// checkHealth keeps the stream of fingerprints open, as Nomad does for its whole life.
func (p *plugin) checkHealth(ctx context.Context) error {
	fingerprints, err := p.driver.Fingerprint(ctx)
	if err != nil {
		return fmt.Errorf("ask for fingerprint: %w", err)
	}
	first, ok := <-fingerprints
	switch {
	case !ok:
		return errors.New("ask for fingerprint: the plugin gave none")
	case first.Err != nil:
		return fmt.Errorf("ask for fingerprint: %w", first.Err)
	case first.Health != drivers.HealthStateHealthy:
		return fmt.Errorf("the driver is %s: %s", first.Health, first.HealthDescription)
	}
	go func() {
		for range fingerprints {
		}
	}()
	return nil
}

// withDefaults completes a config block by its schema, as Nomad does
// (client/allocrunner/taskrunner/task_runner.go, runDriver).
func withDefaults(schema *hclspec.Spec, block map[string]any) (options map[string]any, err error) {
	spec, diagnostics := hclspecutils.Convert(schema)
	if diagnostics.HasErrors() {
		return nil, fmt.Errorf("convert schema: %w", diagnostics)
	}
	value, _, errs := hclutils.ParseHclInterface(block, spec, nil)
	if len(errs) > 0 {
		return nil, fmt.Errorf("parse config: %w", errors.Join(errs...))
	}
	var encoded drivers.TaskConfig
	if err := encoded.EncodeDriverConfig(value); err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	if err := encoded.DecodeDriverConfig(&options); err != nil {
		return nil, fmt.Errorf("decode config: %w", err)
	}
	return options, nil
}
