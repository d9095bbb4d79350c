package driver

import (
	"context"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc"
)

// Serve serves the driver to the Nomad client that started this process, until the client
// ends it. Unlike Nomad's plugins.Serve, it reports all capabilities to the client.
func Serve() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The agent filters by its own log level.
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, JSONFormat: true})
	d := New(ctx, logger)
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: base.Handshake,
		Plugins: map[string]plugin.Plugin{
			base.PluginTypeBase:   &base.PluginBase{Impl: d},
			base.PluginTypeDriver: drivers.NewDriverPlugin(d, logger),
		},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return plugin.DefaultGRPCServer(append(options, grpc.UnaryInterceptor(d.completeCapabilities)))
		},
		Logger: logger,
	})
}

// completeCapabilities adds what Nomad's server of the plugin protocol leaves out of its
// response (plugins/drivers/server.go, Capabilities, until 2.0.5).
func (d *Driver) completeCapabilities(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, err := handler(ctx, request)
	if c, ok := response.(*proto.CapabilitiesResponse); ok && err == nil {
		c.Capabilities.DisableLogCollection = d.currentConfig().DisableLogCollection
	}
	return response, err
}
