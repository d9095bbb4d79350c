package download

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

const maxRedirects = 10

// newHTTP returns a client that trusts the certificates in caFile, if not empty,
// besides the system's.
func newHTTP(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // checksums are those of the file as it is stored
	var err error
	if transport.TLSClientConfig, err = fetch.TLS(caFile); err != nil {
		return nil, err
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}, nil
}

// checkRedirect decides whether req is made, after those in via.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL.Scheme, req.URL.Scheme
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: there were %d before it", errRedirect, maxRedirects)
	case to != "https" && (to != "http" || from == "https"):
		return fmt.Errorf("%w: it leads from %s to %s", errRedirect, from, to)
	}
	return nil
}

// get asks for u. The body of the answer must be closed.
func (s *source) get(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	ctx, watch := fetch.Watch(ctx, s.inactivity)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		watch.Stop()
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("User-Agent", "nomad-driver-nspawn")
	if s.user != nil {
		// As a header and not in the URL, so that net/http gives it to no other
		// host upon a redirect, and has nothing to quote in an error.
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
	watch.Wait()
	resp, err := s.http.Do(req)
	watch.Got(0, true)
	if err != nil {
		err = explain(ctx, err)
		watch.Stop()
		return nil, err
	}
	resp.Body = &body{resp.Body, ctx, watch}
	return resp, nil
}
