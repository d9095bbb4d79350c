package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Start starts the agent and returns when its node accepts tasks for the driver.
func (a *Agent) Start(ctx context.Context) error {
	return a.systemctl(ctx, "start")
}

// Restart stops the agent, as an upgrade of Nomad would, and starts it again.
func (a *Agent) Restart(ctx context.Context) error {
	return a.systemctl(ctx, "restart")
}

func (a *Agent) systemctl(ctx context.Context, verb string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	// systemctl waits until Nomad reports to systemd that it is up.
	if _, err := a.Command(ctx, "systemctl", verb, unit); err != nil {
		return fmt.Errorf("%w; its journal ends with:\n%s", err, a.Journal(context.WithoutCancel(ctx), unit, 15))
	}
	if err := a.awaitNode(ctx); err != nil {
		return err
	}
	_, err := a.AwaitDriver(ctx, true)
	return err
}

// Stop stops the agent. Tasks keep running.
func (a *Agent) Stop(ctx context.Context) error {
	_, err := a.Command(ctx, "systemctl", "stop", unit)
	return err
}

// Kill kills the agent's process and no other.
func (a *Agent) Kill(ctx context.Context) error {
	if _, err := a.Command(ctx, "systemctl", "kill", "--kill-who=main", "--signal=KILL", unit); err != nil {
		return err
	}
	// Stop returns when systemd has noticed the end, and resets the failure.
	return a.Stop(ctx)
}

// PluginPID returns the PID of the plugin on the host.
func (a *Agent) PluginPID(ctx context.Context) (string, error) {
	// The plugin's only argument is its path; helpers that run in machines have more.
	text, err := a.Command(ctx, "pgrep", "--full", "--exact", Plugin)
	if err != nil {
		return "", fmt.Errorf("find the plugin's process: %w", err)
	}
	pids := strings.Fields(text)
	if len(pids) != 1 {
		return "", fmt.Errorf("find the plugin's process: want one, found %q", pids)
	}
	return pids[0], nil
}

// KillPlugin kills the plugin's process, which the agent then starts again.
func (a *Agent) KillPlugin(ctx context.Context) error {
	pid, err := a.PluginPID(ctx)
	if err != nil {
		return err
	}
	_, err = a.Command(ctx, "kill", "-KILL", pid)
	return err
}

// awaitNode waits until the agent's own node is registered and ready.
func (a *Agent) awaitNode(ctx context.Context) error {
	self, err := a.API.Agent().Self()
	if err != nil {
		return fmt.Errorf("ask the agent for its node: %w", err)
	}
	a.Node = self.Stats["client"]["node_id"]
	isReady := func(nodes []*api.NodeListStub) bool {
		return slices.ContainsFunc(nodes, func(node *api.NodeListStub) bool {
			return node.ID == a.Node && node.Status == api.NodeStatusReady
		})
	}
	_, err = watch(ctx, a.API.Nodes().List, isReady)
	// A server that has just become the leader returns this error, after some seconds of
	// waiting.
	for err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "Not ready to serve consistent reads") {
		_, err = watch(ctx, a.API.Nodes().List, isReady)
	}
	if err != nil {
		return fmt.Errorf("wait for the node to be ready: %w", err)
	}
	return nil
}

// AwaitDriver waits until the node reports the driver as healthy, or as not healthy.
func (a *Agent) AwaitDriver(ctx context.Context, healthy bool) (*api.DriverInfo, error) {
	node, err := a.awaitDriver(ctx, func(info *api.DriverInfo) bool {
		return (info.Healthy && info.Detected) == healthy
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the driver to be healthy (%t): %w", healthy, err)
	}
	return node.Drivers[Driver], nil
}

func (a *Agent) awaitDriver(ctx context.Context, until func(*api.DriverInfo) bool) (*api.Node, error) {
	query := func(q *api.QueryOptions) (*api.Node, *api.QueryMeta, error) { return a.API.Nodes().Info(a.Node, q) }
	node, err := watch(ctx, query, func(node *api.Node) bool {
		info := node.Drivers[Driver]
		return info != nil && until(info)
	})
	if node != nil && err != nil && node.Drivers[Driver] != nil {
		err = fmt.Errorf("%w; it says %q", err, node.Drivers[Driver].HealthDescription)
	}
	return node, err
}

// watch repeats a query until the answer fulfills a condition, each time when Nomad
// reports a change. With an error, it also returns the last answer.
func watch[T any](ctx context.Context, query func(*api.QueryOptions) (T, *api.QueryMeta, error), until func(T) bool) (answer T, err error) {
	var index uint64
	for {
		next, meta, err := query((&api.QueryOptions{WaitIndex: index, WaitTime: readyTimeout}).WithContext(ctx))
		if ctx.Err() != nil {
			return answer, ctx.Err()
		}
		if err != nil {
			return answer, err
		}
		if answer = next; until(answer) {
			return answer, nil
		}
		index = max(meta.LastIndex, 1) // an empty table has 0, which would not wait
	}
}
