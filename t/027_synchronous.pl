# With synchronous replication what a handler did waits for the standby, and so
# does its reply; else a failover could handle the record anew, and otherwise.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach (qw(orders replies));
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres'],
	init => { allows_streaming => 1 });

$node->safe_psql('postgres', q{
	CREATE TABLE seen (payload text);
	CREATE FUNCTION see(record outbox.record) RETURNS void LANGUAGE sql
		AS $$INSERT INTO seen VALUES (record.payload)$$;
	SELECT outbox.subscribe('orders', 'see(outbox.record)', reply_topic => 'replies')});
$mock->produce('orders', { value => 'one', partition => 0 });
wait_for_value($node, 'postgres', q{SELECT count(*) FROM seen}, '1');
wait_for_value($node, 'postgres', q{SELECT status FROM outbox.message}, 'SENT');

set_conf($node, synchronous_standby_names => 'nobody');
wait_for_value($node, 'postgres', 'SHOW synchronous_standby_names', 'nobody');
$mock->produce('orders', { value => 'two', partition => 0 });
wait_for_value($node, 'postgres',
	q{SELECT count(*) FROM pg_stat_activity
	  WHERE backend_type = 'outbox consumer' AND wait_event = 'SyncRep'}, '1');
is($node->safe_psql('postgres', q{SELECT count(*) FROM seen}), '1',
	'nobody sees what the standby may not have');
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.message}), '1', 'nor the reply');

set_conf($node, synchronous_standby_names => '');
wait_for_value($node, 'postgres', q{SELECT string_agg(payload, ', ') FROM seen}, 'one, two');
wait_for_value($node, 'postgres',
	q{SELECT status, count(*) FROM outbox.message GROUP BY status}, 'SENT|2');

$node->stop;
$mock->stop;
done_testing();
