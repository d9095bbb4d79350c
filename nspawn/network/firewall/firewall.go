// Package firewall lets packets of containers pass the host's other firewalls, which
// usually drop forwarded packets that they do not know.
//
// The rules that it adds are the narrowest that work: they accept everything that a
// container's link sends, and of the packets to it only answers and forwarded ports.
//
// An accept rule in a chain of our own would not help, because a packet passes only if no
// chain drops it. So the rules are added to the other firewall's chains, where that is
// the intended way, with a comment by which Close finds them.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
)

// Comment marks each of our rules.
const Comment = "nomad-nspawn"

// Finding describes a firewall that drops packets of containers and cannot safely be
// changed by the driver.
type Finding struct {
	Problem string
	Remedy  string // commands for the operator
}

func (f Finding) String() string { return f.Problem + "; to let them pass: " + f.Remedy }

// Open lets packets pass that come from links whose names begin with one of the prefixes,
// and the answers to them. It does not add a rule twice. An error means that a firewall
// could not be read or changed.
func Open(ctx context.Context, prefixes []string) ([]Finding, error) {
	var findings []Finding
	finding, err := openFirewalld(ctx, prefixes)
	errs := []error{err}
	if finding != nil {
		findings = append(findings, *finding)
	}
	filters, err := dropping()
	if err != nil {
		return findings, errors.Join(append(errs, err)...)
	}
	for _, f := range filters {
		finding, err := f.open(ctx, prefixes)
		if err != nil {
			errs = append(errs, fmt.Errorf("let containers pass %s: %w", f, err))
		}
		if finding != nil {
			findings = append(findings, *finding)
		}
	}
	return findings, errors.Join(errs...)
}

// Close removes the rules that Open has added, in this plugin or an earlier one.
func Close(ctx context.Context, prefixes []string) error {
	errs := []error{closeFirewalld(ctx, prefixes)}
	filters, err := forwarding()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, f := range filters {
		if err := f.close(ctx, prefixes); err != nil {
			errs = append(errs, fmt.Errorf("remove rules for containers from %s: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

// programTimeout limits each piece of work of another program, which may hang: a run of
// iptables, or what firewalld does for one prefix. Its share of a busy host is small, and one
// filter can take two dozen runs, so it does not limit all of them together.
const programTimeout = 5 * time.Second

// filter is a base chain of another firewall for forwarded packets.
type filter struct {
	*nftables.Chain
	tables map[string]bool // names of the chains of the same table
	owned  bool            // the table belongs to a process, and only that process may change it
}

func (f filter) String() string {
	return fmt.Sprintf("chain %s of table %s %s", f.Name, familyNames[f.Table.Family], f.Table.Name)
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// dropping returns the filters whose policy is to drop.
func dropping() ([]filter, error) {
	all, err := forwarding()
	var found []filter
	for _, f := range all {
		if f.Policy != nil && *f.Policy == nftables.ChainPolicyDrop {
			found = append(found, f)
		}
	}
	return found, err
}

// forwarding returns all base chains for forwarded packets.
func forwarding() ([]filter, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables of nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains of nftables: %w", err)
	}
	var found []filter
	for _, chain := range chains {
		hook := chain.Hooknum
		if familyNames[chain.Table.Family] == "" || hook == nil || *hook != *nftables.ChainHookForward || chain.Type != nftables.ChainTypeFilter {
			continue
		}
		f := filter{Chain: chain, tables: map[string]bool{}}
		for _, other := range chains {
			if other.Table.Name == chain.Table.Name && other.Table.Family == chain.Table.Family {
				f.tables[other.Name] = true
			}
		}
		for _, table := range tables {
			if table.Name == chain.Table.Name && table.Family == chain.Table.Family {
				f.owned = table.Flags&tableOwner != 0
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// tableOwner is the flag NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h).
const tableOwner = 2

// byIptables reports whether the chain belongs to iptables. Only iptables(8) should
// change such chains, because it cannot display foreign rules.
func (f filter) byIptables() bool {
	return f.Name == "FORWARD" && f.Table.Name == "filter" && f.Table.Family != nftables.TableFamilyINet
}

func (f filter) open(ctx context.Context, prefixes []string) (*Finding, error) {
	if f.byIptables() {
		return f.openIptables(ctx, prefixes)
	}
	return f.openNative(prefixes)
}

func (f filter) close(ctx context.Context, prefixes []string) error {
	if f.byIptables() {
		return f.closeIptables(ctx, prefixes)
	}
	return f.closeNative()
}
