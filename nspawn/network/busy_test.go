package network

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/networktest"
)

// TestBusyFirewall opens a firewall whose program is slow, as each program is on a busy host,
// and then one whose program hangs.
func TestBusyFirewall(t *testing.T) {
	networktest.Host(t)
	h, rules := New(), &nftables.Conn{}
	policy := nftables.ChainPolicyDrop
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		rules.AddChain(&nftables.Chain{
			Table: rules.AddTable(&nftables.Table{Family: family, Name: "filter"}), Name: "FORWARD", // that of iptables
			Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
	}
	must.NoError(t, rules.Flush())
	t.Cleanup(func() {
		rules.FlushRuleset()
		must.NoError(t, rules.Flush())
	})
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	iptables := func(script string) {
		for _, name := range []string{"iptables", "ip6tables"} {
			must.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
		}
	}
	iptables("exec sleep 0.4") // it has each rule
	begin := time.Now()
	must.NoError(t, h.openFirewalls(t.Context()))
	must.Greater(t, 4*time.Second, time.Since(begin)) // so the programs were slow

	iptables("exec sleep 1000")
	h.opened = false
	must.ErrorContains(t, h.openFirewalls(t.Context()), "deadline exceeded")
}
