package firewall

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/nftables"
)

// dockerUser is the chain that docker reserves for other programs: docker jumps to it
// first, and never changes it (docs.docker.com, Packet filtering and firewalls). Without
// docker, for example with ufw, the rules are added to FORWARD itself.
const dockerUser = "DOCKER-USER"

func (f filter) iptables() string {
	if f.Table.Family == nftables.TableFamilyIPv6 {
		return "ip6tables"
	}
	return "iptables"
}

func (f filter) iptablesChain() string {
	if f.tables[dockerUser] {
		return dockerUser
	}
	return f.Name
}

// iptablesRules returns the rules for one prefix.
func iptablesRules(prefix string) []string {
	comment := " -m comment --comment " + Comment + " -j ACCEPT"
	return []string{
		"-i " + prefix + "+" + comment,
		"-o " + prefix + "+ -m conntrack --ctstate RELATED,ESTABLISHED,DNAT" + comment,
	}
}

func (f filter) openIptables(ctx context.Context, prefixes []string) (*Finding, error) {
	var commands []string
	for _, prefix := range prefixes {
		for _, rule := range iptablesRules(prefix) {
			commands = append(commands, fmt.Sprintf("%s -I %s %s", f.iptables(), f.iptablesChain(), rule))
		}
	}
	if _, err := exec.LookPath(f.iptables()); err != nil {
		return &Finding{
			Problem: fmt.Sprintf("%s drops packets of containers, and %s, which may change it, is not installed", f, f.iptables()),
			Remedy:  strings.Join(commands, "; "),
		}, nil
	}
	for _, prefix := range prefixes {
		for _, rule := range iptablesRules(prefix) {
			err := f.runIptables(ctx, "-C", f.iptablesChain(), rule)
			if isMissing(err) {
				err = f.runIptables(ctx, "-I", f.iptablesChain(), rule)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// closeIptables removes the rules from both chains, because docker may have been started
// or stopped since they were added.
func (f filter) closeIptables(ctx context.Context, prefixes []string) error {
	if _, err := exec.LookPath(f.iptables()); err != nil {
		return nil
	}
	for _, chain := range []string{dockerUser, f.Name} {
		for _, prefix := range prefixes {
			for _, rule := range iptablesRules(prefix) {
				if err := f.deleteIptables(ctx, chain, rule); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// deleteIptables deletes a rule as often as it is in a chain, which may be missing.
func (f filter) deleteIptables(ctx context.Context, chain, rule string) error {
	for f.tables[chain] {
		if err := f.runIptables(ctx, "-C", chain, rule); isMissing(err) {
			return nil
		} else if err != nil {
			return err
		}
		if err := f.runIptables(ctx, "-D", chain, rule); err != nil {
			return err
		}
	}
	return nil
}

// isMissing reports whether iptables has said that there is no such rule: it has neither
// found it nor been stopped.
func isMissing(err error) bool {
	return err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

// runIptables runs iptables, which waits for other users of iptables until its time is over.
func (f filter) runIptables(ctx context.Context, do, chain, rule string) error {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	args := append([]string{"-w", do, chain}, strings.Fields(rule)...)
	out, err := exec.CommandContext(ctx, f.iptables(), args...).CombinedOutput()
	if err != nil {
		err = errors.Join(err, ctx.Err())
		return fmt.Errorf("%s %s: %w: %s", f.iptables(), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
