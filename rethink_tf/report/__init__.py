"""What people look at: pictures and summaries made from what runs leave."""
