package firewall

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// nativeRule is a rule for a chain of nft(8), together with its text in nft's syntax.
type nativeRule struct {
	text  string
	exprs []expr.Any
}

// nativeRules returns the rules for one prefix.
func nativeRules(prefix string) []nativeRule {
	const register = 1
	link := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: register},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte(prefix)},
		}
	}
	has := func(key expr.CtKey, bits uint32) []expr.Any {
		return []expr.Any{
			&expr.Ct{Key: key, Register: register},
			&expr.Bitwise{
				SourceRegister: register, DestRegister: register, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
		}
	}
	const statusDNAT = 0x20 // IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h)
	rule := func(text string, parts ...[]expr.Any) nativeRule {
		var exprs []expr.Any
		for _, part := range parts {
			exprs = append(exprs, part...)
		}
		return nativeRule{text + " accept", append(exprs, &expr.Verdict{Kind: expr.VerdictAccept})}
	}
	return []nativeRule{
		rule(fmt.Sprintf("iifname %q", prefix+"*"), link(expr.MetaKeyIIFNAME)),
		rule(fmt.Sprintf("oifname %q ct state established,related", prefix+"*"),
			link(expr.MetaKeyOIFNAME), has(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)),
		rule(fmt.Sprintf("oifname %q ct status dnat", prefix+"*"), link(expr.MetaKeyOIFNAME), has(expr.CtKeySTATUS, statusDNAT)),
	}
}

// ruleComment is NFTNL_UDATA_RULE_COMMENT (libnftnl/udata.h).
const ruleComment userdata.Type = 0

// mark returns the rule's comment, which says that the rule is ours, and which rule it
// is.
func (r nativeRule) mark() string { return Comment + ": " + r.text }

func (f filter) openNative(prefixes []string) (*Finding, error) {
	var rules []nativeRule
	for _, prefix := range prefixes {
		rules = append(rules, nativeRules(prefix)...)
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer conn.CloseLasting()
	have, err := f.marks(conn)
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		if have[rule.mark()] != nil {
			continue
		}
		conn.InsertRule(&nftables.Rule{
			Table: f.Table, Chain: f.Chain, Exprs: rule.exprs,
			UserData: userdata.AppendString(nil, ruleComment, rule.mark()),
		})
	}
	err = conn.Flush()
	if errors.Is(err, unix.EPERM) && f.owned {
		return f.finding(rules), nil
	}
	if err != nil {
		return nil, fmt.Errorf("insert rules: %w", err)
	}
	return nil, nil
}

// finding describes a table that belongs to a process.
func (f filter) finding(rules []nativeRule) *Finding {
	var texts []string
	for _, rule := range rules {
		texts = append(texts, rule.text)
	}
	return &Finding{
		Problem: fmt.Sprintf("%s drops packets of containers, and only the program that owns the table may change it", f),
		Remedy:  "configure that program to add the rules: " + strings.Join(texts, "; "),
	}
}

// marks returns our rules in the chain by their marks.
func (f filter) marks(conn *nftables.Conn) (map[string]*nftables.Rule, error) {
	rules, err := conn.GetRules(f.Table, f.Chain)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	found := map[string]*nftables.Rule{}
	for _, rule := range rules {
		comment, _ := userdata.GetString(rule.UserData, ruleComment)
		if strings.HasPrefix(comment, Comment+": ") {
			found[strings.Clone(comment)] = rule
		}
	}
	return found, nil
}

func (f filter) closeNative() error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer conn.CloseLasting()
	have, err := f.marks(conn)
	if err != nil {
		return err
	}
	for _, rule := range have {
		if err := conn.DelRule(rule); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete rules: %w", err)
	}
	return nil
}
