package download

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

const maxRedirects = 10

// newHTTP returns a client that trusts the certificates in caFile, if it is not empty, in
// addition to the system's.
func newHTTP(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // checksums apply to the file as it is stored
	var err error
	if transport.TLSClientConfig, err = fetch.TLS(caFile); err != nil {
		return nil, err
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}, nil
}

// checkRedirect decides whether to follow a redirect to req, after the requests in via.
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

// get requests u. The caller closes the body of the response.
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
		// The credentials are sent in a header and are not part of the URL. So net/http
		// does not send them to other hosts after a redirect, nor quote them in errors.
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
