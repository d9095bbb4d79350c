//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

// TestCluster checks that tasks of two clients find each other by Nomad's services, even
// after one of them has moved.
func TestCluster(t *testing.T) {
	t.Parallel()
	first := upOn(t, "")
	second := upOn(t, fmt.Sprintf("%s:4647", first.Host.LANAddrs()[0]))
	for network, of := range map[string]struct{ group, config string }{
		"bridge": {group: "network {\nmode = \"bridge\"\nport \"http\" {\nto = 80\n}\n}"},
		"veth":   {group: httpPort, config: forwardHTTP},
		"zone":   {group: httpPort, config: "network_zone = \"web\"\nports = [\"http\"]"},
	} {
		newLab(t, first).sub(network, func(l *lab) { testMove(l, second.Node, of.group, of.config) })
	}
	newLab(t, first).sub("ports", func(l *lab) {
		// With network_interface in the agent's configuration, they are ports of its address.
		address := l.agent.Host.LANAddrs()[0].String()
		testForwardedDNS(l, on("constraint", l.agent.Node), map[*agent.Agent][]string{second: {address}, l.agent: {address}})
	})
}

// testMove runs a task that calls an API on another node, and then drains that node.
func testMove(l *lab, other, group, config string) {
	server := l.start(job{
		kind:  service,
		group: group + on("affinity", l.agent.Node),
		tasks: []task{{
			config: config, script: webServer + loop,
			more: fmt.Sprintf("service {\nname = %q\nprovider = \"nomad\"\nport = \"http\"\n}", l.serviceName()),
		}},
	})
	must.NoError(l, server.Running(l.ctx))
	must.Eq(l, l.agent.Node, l.nodeOf(server))
	client := l.start(job{
		kind:  service,
		group: group + on("constraint", other),
		tasks: []task{{
			config: config,
			script: "while true; do address=$(cat /local/api); [ -z \"$address\" ] || timeout 5 wget -q -O- http://$address/; sleep 0.2; done",
			more: fmt.Sprintf("template {\ndestination = \"local/api\"\nchange_mode = \"noop\"\n"+
				"data = \"{{ range nomadService %s }}{{ .Address }}:{{ .Port }}{{ end }}\"\n}", `\"`+l.serviceName()+`\"`),
		}},
	})
	must.NoError(l, client.Running(l.ctx))
	l.waitLog(client, agent.Stdout, server.ID+"\n")

	l.drain(true)
	l.Cleanup(func() { l.drain(false) })
	moved, err := server.Next(l.ctx)
	must.NoError(l, err)
	l.removeAtEnd([]*agent.Alloc{moved})
	must.NoError(l, moved.Running(l.ctx))
	must.Eq(l, other, l.nodeOf(moved))
	l.waitLog(client, agent.Stdout, moved.ID+"\n")
}

// on returns a constraint, or an affinity, that places a group on a node.
func on(kind, node string) string {
	weight := ""
	if kind == "affinity" {
		weight = "weight = 100\n"
	}
	return fmt.Sprintf("\n%s {\nattribute = \"${node.unique.id}\"\nvalue = %q\n%s}", kind, node, weight)
}

func (l *lab) nodeOf(al *agent.Alloc) string {
	l.Helper()
	now, err := al.Await(l.ctx, "known", func(*api.Allocation) bool { return true })
	must.NoError(l, err)
	return now.NodeID
}

// drain makes all tasks leave the lab's node, or makes the node eligible for tasks again.
func (l *lab) drain(leave bool) {
	l.Helper()
	var spec *api.DrainSpec
	if leave {
		spec = &api.DrainSpec{}
	}
	_, err := l.agent.API.Nodes().UpdateDrain(l.agent.Node, spec, !leave, nil)
	must.NoError(l, err)
}

// upOn starts an agent on a host of its own, which other hosts reach by its LAN. If server
// is empty, the agent is a server.
func upOn(t *testing.T, server string) *agent.Agent {
	example, err := os.ReadFile("../example/agent.hcl")
	must.NoError(t, err)
	const isServer = "server {\n  enabled          = true\n  bootstrap_expect = 1\n}\n"
	must.StrContains(t, string(example), isServer)
	config, servers := string(example), ""
	if server != "" {
		config, servers = strings.Replace(config, isServer, "", 1), fmt.Sprintf("servers = [%q]", server)
	}
	const address = `{{ GetAllInterfaces | include \"name\" \"^lan0$\" | include \"type\" \"IPv4\" | attr \"address\" }}`
	config += fmt.Sprintf(`
client {
  network_interface        = "lan0"
  preferred_address_family = "ipv4"
  %s
}
advertise {
  rpc  = "%s"
  serf = "%[2]s"
}
`, servers, address)
	path := filepath.Join(t.TempDir(), "cluster.hcl")
	must.NoError(t, os.WriteFile(path, []byte(config), 0o644))

	suites := host.Chosen()
	return upWith(t, agent.Options{
		Suite:  suites[len(suites)-1],
		LAN:    "cluster",
		Plugin: "../build/nomad-driver-nspawn",
		Config: []string{path, "agent.hcl"},
	})
}
